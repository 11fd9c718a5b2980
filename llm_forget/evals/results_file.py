"""results.json as its readers need it: read, and refused in a sentence where it is damaged or of another version."""

from __future__ import annotations

import math
from typing import Any

from llm_forget.core.run_directory import RESULTS_FORMAT, ROLES, Run, read_json
from llm_forget.evals.suite import GOALS

ANSWERS = ("yes", "no", "inconclusive")
HOLDS = (True, False, None)


def read_results(run: Run) -> dict[str, Any]:
    """Content of results.json of a run that was evaluated.

    Raises:
        ValueError: not evaluated, written by another version, or not what an evaluation writes; names the file, the
            first place that is wrong and the command that helps.
    """
    file, again = run.results_file, f"llm-forget evaluate {run.path}"
    if not file.is_file() and run.state.get("kind") == "finetune":
        raise ValueError(
            f"run '{run.path}' is a finetune run: it has no model before, no forget rows and no results; name a run of "
            f"unlearn, or measure one on this model with --target {run.path} or --oracle {run.path}"
        )
    if not file.is_file():
        raise ValueError(f"run '{run.path}' was not evaluated, it has no results.json; first: {again}")
    try:
        content = read_json(file)
    except UnicodeDecodeError:
        raise ValueError(f"'{file}' is damaged (it is no text); delete it and evaluate again: {again}") from None
    except ValueError as error:
        raise ValueError(f"{error}; delete it and evaluate again: {again}") from None
    if isinstance(content, dict) and content.get("format") != RESULTS_FORMAT:
        raise ValueError(
            f"'{file}' has another format than {RESULTS_FORMAT}, that of this version; evaluate again: {again}"
        )
    wrong = _first_wrong(content)
    if wrong is not None:
        raise ValueError(f"'{file}' is damaged ({wrong}); delete it and evaluate again: {again}")
    return content


def _first_wrong(content: Any) -> str | None:
    """Where the content is not what an evaluation writes; None where all is well."""
    if not isinstance(content, dict):
        return "it holds no mapping"
    models, suites = content.get("models"), content.get("suites")
    if not isinstance(models, dict) or not all(_is_model(models.get(role, "")) for role in ROLES):
        return "'models' does not say which models were measured"
    if not isinstance(suites, dict) or not suites:
        return "'suites' holds no suite"
    if not isinstance(content.get("llm_forget"), str):
        return "'llm_forget' does not say which version wrote it"
    return next((f"suite '{name}': {wrong}" for name, suite in suites.items() if (wrong := _wrong_suite(suite))), None)


def _is_model(model: Any) -> bool:
    return model is None or (isinstance(model, dict) and all(isinstance(model.get(k), str) for k in ("name", "digest")))


def _wrong_suite(suite: Any) -> str | None:
    if not isinstance(suite, dict) or not isinstance(suite.get("metrics"), dict) or not suite["metrics"]:
        return "it holds no line of metrics"
    wrong = [f"line '{name}'" for name, line in suite["metrics"].items() if not _is_line(line)]
    if wrong:
        return f"{wrong[0]} is no value with interval, count and goal"
    if not isinstance(suite.get("verdict"), dict) or not all(_is_verdict(found) for found in suite["verdict"].values()):
        return "'verdict' holds no answers with findings"
    overrides = suite.get("overrides", [])
    if not isinstance(overrides, list) or not all(isinstance(key, str) for key in overrides):
        return "'overrides' is no list of keys"
    return None


def _is_line(line: Any) -> bool:
    others = [line.get(role) for role in ("before", "oracle")] if isinstance(line, dict) else [0]
    summaries = [line, *(other for other in others if other is not None)]
    return all(map(_is_summary, summaries)) and line.get("goal") in GOALS and isinstance(line.get("metric", ""), str)


def _is_summary(line: Any) -> bool:
    """A value or null, an interval or null, and the number of scored and unscored rows."""
    if not isinstance(line, dict) or not {"value", "ci", "n", "n_unscored"} <= line.keys():
        return False
    ci, counts = line["ci"], (line["n"], line["n_unscored"])
    known = [*([] if line["value"] is None else [line["value"]]), *(ci if isinstance(ci, list) else [])]
    return (
        (ci is None or (isinstance(ci, list) and len(ci) == 2))
        and all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in known)
        and all(type(count) is int for count in counts)
    )


def _is_verdict(found: Any) -> bool:
    findings = found.get("findings") if isinstance(found, dict) else None
    return (
        isinstance(findings, list)
        and found.get("answer") in ANSWERS
        and all(
            isinstance(finding, dict)
            and "of" in finding
            and any(finding.get("holds", "") is one for one in HOLDS)
            and isinstance(finding.get("sentence"), str)
            for finding in findings
        )
    )
