"""Build the YAML header of a model card, which the Hub reads. It contains all results without rounding."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_forget.core.run_directory import ROLES
from llm_forget.core.text import plain
from llm_forget.publish.anonymise import hub_id
from llm_forget.publish.card.facts import other_origin
from llm_forget.report.run_evidence import Evidence

ON_HUB = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")  # id of a data set

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCardData

    from llm_forget.core.formats.publication import CardStatements

UNSCORED = "unscored"  # instead of the null in results.json, which the Hub does not allow
TASK = "text-generation"
FORM_TAGS = {True: ["gguf"], False: ["bitsandbytes"]}  # key: whether the exported form is a GGUF file


def card_data(
    evidence: Evidence, statements: CardStatements, *, title: str, adapter: bool, form: dict[str, Any] | None = None
) -> ModelCardData:
    """Build the metadata of a card. ``form`` is the content of export.json if an exported model is published."""
    from huggingface_hub import ModelCardData

    config = evidence.run.config if evidence.run.config_file.is_file() else {}
    method = plain(str(config.get("method") or "own-objective"))
    tags = ["llm-forget"] if other_origin(evidence) else ["machine-unlearning", "llm-forget", method]
    base = statements.base_model or hub_id(evidence.provenance.get("base", {}))
    kind = ["lora", "peft"] if adapter else [plain(str(form["form"])), *FORM_TAGS[bool(form["file"])]] if form else []
    optional_fields: dict[str, Any] = {"base_model_relation": "adapter" if adapter else "finetune"} if base else {}
    optional_fields |= {k: v for k in ("license_name", "license_link") if (v := getattr(statements, k)) is not None}
    return ModelCardData(
        base_model=base, library_name="peft" if adapter else "transformers",
        license=plain(statements.license) if statements.license else None,
        datasets=list(statements.datasets) or datasets(config) or None, pipeline_tag=TASK, tags=[*tags, *kind],
        model_name=plain(title), eval_results=eval_results(evidence.results), **optional_fields,
    )  # fmt: skip


def eval_results(results: dict[str, Any]) -> list[EvalResult]:
    """Return one entry for each metric of each suite: value, interval, row counts, goal, and other models' values."""
    from huggingface_hub import EvalResult

    return [
        EvalResult(
            task_type=TASK, task_name="Machine unlearning", dataset_type=plain(suite_name),
            dataset_name=f"llm-forget suite {plain(suite_name)}", dataset_args=_suite_args(suite),
            metric_type=plain(line.get("metric") or name), metric_name=plain(name), metric_value=_value(line),
            metric_args={**_summary(line), "goal": line["goal"], **_other_models(line)},
        )
        for suite_name, suite in results["suites"].items()
        for name, line in suite["metrics"].items()
    ]  # fmt: skip


def datasets(config: dict[str, Any]) -> list[str]:
    """Return the Hub data sets of a recipe. Paths without name, split or revision may be local and are left out."""
    names: list[str] = []
    for split in ("train", "forget", "retain", "holdout"):
        spec = config.get(split)
        for source in spec if isinstance(spec, list) else [spec]:
            if isinstance(source, dict) and {"name", "split", "revision"} & source.keys() and source.get("path"):
                path = str(source["path"])
                if ON_HUB.fullmatch(path) and not Path(path).exists():
                    names.append(plain(path))
    return list(dict.fromkeys(names))


def _value(line: dict[str, Any]) -> float | str:
    return UNSCORED if line["value"] is None else line["value"]


def _summary(line: dict[str, Any]) -> dict[str, Any]:
    # The Hub client drops null values from mappings. Drop them here too, so that reading back gives equal metadata.
    fields = {"ci": line["ci"], "n": line["n"], "n_unscored": line["n_unscored"]}
    return {key: value for key, value in fields.items() if value is not None}


def _other_models(line: dict[str, Any]) -> dict[str, Any]:
    others = {role: line.get(role) for role in ROLES if role != "unlearned"}
    return {role: {"value": _value(other), **_summary(other)} for role, other in others.items() if other}


def _suite_args(suite: dict[str, Any]) -> dict[str, Any] | None:
    """Return a suite's definition, row limit and overridden recipe keys, or None if it has none of the three."""
    fields = {"definition": suite.get("definition"), "limit": suite.get("limit")}
    fields["overrides"] = [plain(key) for key in suite.get("overrides") or []] or None
    return {key: value for key, value in fields.items() if value is not None} or None
