"""The head of a model card: what the Hub reads of it, with every number of results.json in full."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_forget.core.run_directory import ROLES
from llm_forget.core.text import plain
from llm_forget.publish.anonymise import hub_id
from llm_forget.publish.card.facts import made_otherwise
from llm_forget.report.run_evidence import Evidence

ON_HUB = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")  # a data set's name there

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCardData

    from llm_forget.publish.card.statements import Statements

UNSCORED = "unscored"  # where results.json has null, which the Hub does not allow
TASK = "text-generation"
OF_FORM = {True: ["gguf"], False: ["bitsandbytes"]}  # tags, by whether it is one GGUF file


def card_data(
    evidence: Evidence, statements: Statements, *, title: str, adapter: bool, form: dict[str, Any] | None = None
) -> ModelCardData:
    """Metadata of a card.

    Args:
        adapter: whether an adapter is published, otherwise a full model.
        form: content of export.json, where another form is published.
    """
    from huggingface_hub import ModelCardData

    config = evidence.run.config if evidence.run.config_file.is_file() else {}
    method = plain(str(config.get("method") or "own-objective"))
    tags = ["llm-forget"] if made_otherwise(evidence) else ["machine-unlearning", "llm-forget", method]
    base = statements.base_model or hub_id(evidence.provenance.get("base", {}))
    kind = ["lora", "peft"] if adapter else [plain(str(form["form"])), *OF_FORM[bool(form["file"])]] if form else []
    more: dict[str, Any] = {"base_model_relation": "adapter" if adapter else "finetune"} if base else {}
    more |= {k: v for k in ("license_name", "license_link") if (v := getattr(statements, k)) is not None}
    return ModelCardData(
        base_model=base,
        library_name="peft" if adapter else "transformers",
        license=plain(statements.license) if statements.license else None,
        datasets=list(statements.datasets) or datasets(config) or None,
        pipeline_tag=TASK,
        tags=[*tags, *kind],
        model_name=plain(title),
        eval_results=eval_results(evidence.results),
        **more,
    )


def eval_results(results: dict[str, Any]) -> list[EvalResult]:
    """One entry for each line of each suite; interval, rows, goal and the other two models stand in ``args``."""
    from huggingface_hub import EvalResult

    return [
        EvalResult(
            task_type=TASK,
            task_name="Machine unlearning",
            dataset_type=plain(suite_name),
            dataset_name=f"llm-forget suite {plain(suite_name)}",
            dataset_args=_said(suite),
            metric_type=plain(line.get("metric") or name),
            metric_name=plain(name),
            metric_value=_value(line),
            metric_args={**_summary(line), "goal": line["goal"], **_others(line)},
        )
        for suite_name, suite in results["suites"].items()
        for name, line in suite["metrics"].items()
    ]


def datasets(config: dict[str, Any]) -> list[str]:
    """Data sets of the Hub that a recipe names; a bare word may as well be a folder, and is not taken for one."""
    found: list[str] = []
    for split in ("train", "forget", "retain", "holdout"):
        spec = config.get(split)
        for source in spec if isinstance(spec, list) else [spec]:
            if isinstance(source, dict) and {"name", "split", "revision"} & source.keys() and source.get("path"):
                path = str(source["path"])
                if ON_HUB.fullmatch(path) and not Path(path).exists():
                    found.append(plain(path))
    return list(dict.fromkeys(found))


def _value(line: dict[str, Any]) -> float | str:
    return UNSCORED if line["value"] is None else line["value"]


def _summary(line: dict[str, Any]) -> dict[str, Any]:
    # No nulls: the client drops them from mappings, and what is read back should be what was written.
    known = {"ci": line["ci"], "n": line["n"], "n_unscored": line["n_unscored"]}
    return {key: value for key, value in known.items() if value is not None}


def _others(line: dict[str, Any]) -> dict[str, Any]:
    others = {role: line.get(role) for role in ROLES if role != "unlearned"}
    return {role: {"value": _value(found), **_summary(found)} for role, found in others.items() if found}


def _said(suite: dict[str, Any]) -> dict[str, Any] | None:
    """Which suite exactly, and what was not measured as the run's recipe says."""
    known = {"definition": suite.get("definition"), "limit": suite.get("limit")}
    known["overrides"] = [plain(key) for key in suite.get("overrides") or []] or None
    return {key: value for key, value in known.items() if value is not None} or None
