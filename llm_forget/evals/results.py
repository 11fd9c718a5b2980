"""Build results.json and rows.json of a run from records, and merge them with those of earlier evaluations."""

import json
import logging
from collections.abc import Iterable
from typing import Any

from llm_forget.core import __version__, formats
from llm_forget.core.config import SPLITS
from llm_forget.core.formats.results import Results, RowScores
from llm_forget.core.run_directory import ROLES, Run, oracle_roles
from llm_forget.evals.compute_metrics import Computation, compute_lines
from llm_forget.evals.oracles import mean_line
from llm_forget.evals.probes.inputs import Work
from llm_forget.evals.runner import EvaluatedModel
from llm_forget.evals.suite import Suite
from llm_forget.evals.verdict import apply_bound, verdict_answer

logger = logging.getLogger("llm_forget")
DATA_KEYS = {*SPLITS, "splits", "data_path", "fields"}  # recipe keys that select the rows of a split


def assemble_results(
    suites: dict[str, Suite],
    evaluated_models: dict[str, EvaluatedModel],
    works: dict[str, Work],
    records: dict[str, dict[str, Any]],
    options: dict[str, Any],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the contents of results.json and rows.json. ``works`` and ``records[role]`` have keys ``suite/probe``."""
    results, rows = _header(evaluated_models), {}
    options = {
        **options,
        "generated_by": "vllm" if any(evaluated.vllm for evaluated in evaluated_models.values()) else "transformers",
    }
    for name, suite in suites.items():
        suite_records = {role: entries_of_suite(name, entries) for role, entries in records.items()}
        computed = _compute_by_role(suite, suite_records)
        probes = {p: {"answers": len(w.keys), "digest": w.digest} for p, w in entries_of_suite(name, works).items()}
        results["suites"][name] = {
            **_suite_content(suite, computed),
            **options,
            "definition": suite.digest,
            "probes": probes,
        }
        rows[name] = _row_scores(computed)
    return results, rows


def merge_with_earlier(
    run: Run, results: dict[str, Any], rows: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return results and rows, with the suites of an earlier evaluation of the same models added. An earlier suite is
    left out if its rows have changed.
    """
    if not run.rows_file.is_file():
        return results, rows
    earlier = formats.read_if_current(run.results_file, Results, advice="delete it")
    if earlier is None or earlier["models"] != results["models"]:
        return results, rows
    kept_suites = {}
    for name, suite in earlier["suites"].items():
        changed = _changed_splits(suite, results["suites"].values())
        if name in results["suites"] or not changed:
            kept_suites[name] = suite
            continue
        logger.warning(
            "'%s' no longer holds suite '%s': the rows of %s have changed since; evaluate it again",
            run.results_file.name, name, ", ".join(f"'{split}'" for split in changed),
        )  # fmt: skip
    stored_rows = formats.read_content(run.rows_file, RowScores, advice="delete it")
    earlier_rows = {name: lines for name, lines in stored_rows.items() if name in kept_suites}
    return {**results, "suites": {**kept_suites, **results["suites"]}}, {**earlier_rows, **rows}


def _changed_splits(earlier: dict[str, Any], now: Iterable[dict[str, Any]]) -> list[str]:
    """Return the splits whose rows have changed since an earlier suite was measured.

    Only suites with the same ``overrides`` of data keys are compared, because other suites read other data sources.
    """
    changed = set()
    stored = earlier.get("splits", {})  # results of 0.1.0 have no "splits"
    for suite in now:
        if DATA_KEYS & {*earlier.get("overrides", ())} == DATA_KEYS & {*suite["overrides"]}:
            changed |= {split for split, digest in suite["splits"].items() if stored.get(split, digest) != digest}
    return sorted(changed)


def entries_of_suite(name: str, content: dict[str, Any]) -> dict[str, Any]:
    return {key.removeprefix(f"{name}/"): value for key, value in content.items() if key.startswith(f"{name}/")}


def _header(evaluated_models: dict[str, EvaluatedModel]) -> dict[str, Any]:
    measured = {role: {"name": model.name, "digest": model.digest} for role, model in evaluated_models.items()}
    models: dict[str, Any] = {role: measured.get(role) for role in ROLES}
    if len(oracles := oracle_roles(measured)) > 1:
        models["oracles"] = [measured[role] for role in oracles]
    return {"format": Results.FORMAT, "llm_forget": __version__, "models": models, "suites": {}}


def _compute_by_role(suite: Suite, records: dict[str, dict[str, Any]]) -> dict[str, Computation]:
    """Compute the lines of all models, and return them by role. Models that other models' lines read come first."""
    computed: dict[str, Computation] = {}
    # Oracles come twice, because their lines and those of the target read each other.
    oracles = oracle_roles(records)
    for role in (*oracles, "before", *oracles, "unlearned"):
        if role in records:
            others = {other: (other_records, computed.get(other, {})) for other, other_records in records.items()}
            computed[role] = compute_lines(suite, records[role], others, role=role)
    return computed


def _row_scores(computed: dict[str, Computation]) -> dict[str, Any]:
    """Return ids and scores of the rows by line and role, for charts; only the first of several oracles is included."""
    names = [name for name, line in computed["unlearned"].items() if line.rows]
    models = {role: lines for role, lines in computed.items() if role in ROLES}
    return {name: {role: lines[name].rows_to_dict() for role, lines in models.items()} for name in names}


def _suite_content(suite: Suite, computed: dict[str, Computation]) -> dict[str, Any]:
    def lines(role: str) -> dict[str, Any]:
        return {name: line.to_dict() for name, line in computed[role].items()} if role in computed else {}

    labels = {line.name: {"metric": line.metric.name, "goal": line.goal} for line in suite.lines}
    labels |= {task.name: {"metric": f"lm_eval {task.task} {task.metric}", "goal": task.goal} for task in suite.tasks}
    before, oracles = lines("before"), [lines(role) for role in oracle_roles(computed)]
    compared = {line.name for line in suite.lines if line.reads("oracle")}
    references = {
        name: {"before": before.get(name), **_oracle_part([by_name[name] for by_name in oracles], name in compared)}
        for name in labels
    }
    metrics = {name: {**line, **labels[name], **references[name]} for name, line in lines("unlearned").items()}
    # If the target itself satisfies the bounds, it never knew the rows, and "forgot: yes" proves nothing.
    target = {name: {**line, **references[name]} for name, line in before.items()}
    verdict = {}
    for question, bounds in suite.verdict.items():
        findings = [apply_bound(bound, metrics[bound.line]) for bound in bounds]
        verdict[question] = {
            "answer": verdict_answer(findings),
            "before": verdict_answer(apply_bound(bound, target[bound.line]) for bound in bounds) if target else None,
            "findings": [finding.to_dict() for finding in findings],
        }
    return json.loads(json.dumps({"metrics": metrics, "verdict": verdict}, allow_nan=False))


def _oracle_part(lines: list[dict[str, Any]], compared: bool) -> dict[str, Any]:
    """Return the keys of a line that describe the oracles; ``compared``: the line's metric compares with the oracle."""
    mean = mean_line(lines)
    if len(lines) < 2:
        return {"oracle": mean}
    between = {"between_oracles": mean["value"]} if compared and mean is not None else {}
    return {"oracle": mean, "oracles": [line["value"] for line in lines], **between}
