"""What a certificate says about a run, taken from its files: names, digests, numbers and answers; no ids, no texts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from llm_forget.audit.history import model_name
from llm_forget.run import ATTACK_FORMAT, Run, file_digest, read_json

SETTINGS = (
    "learning_rate", "num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps",
    "lora_r", "lora_alpha", "load_in_4bit", "load_in_8bit", "max_retain_drop", "method_args", "gradient_args",
)  # fmt: skip


def facts_of(run: Run, weights: str, results: Mapping[str, Any]) -> dict[str, Any]:
    """What was made of what and how, what was measured, and what attacks found.

    Args:
        run: finished and measured.
        weights: content digest of its model.
        results: of `read_results`.
    """
    return {
        "artefacts": _artefacts(run, weights),
        "method": _method(run),
        "environment": run.provenance.get("environment", {}),
        "measured_with": results["llm_forget"],
        "models": {role: model["digest"] if model else None for role, model in results["models"].items()},
        "suites": {name: _suite(suite) for name, suite in results["suites"].items()},
        "attacks": _attacks(run, results["models"]),
    }


def _artefacts(run: Run, weights: str) -> dict[str, Any]:
    folder = run.adapter if run.adapter.is_dir() else run.model
    base = run.provenance["base"]
    files = sorted(
        path for path in folder.iterdir() if path.suffix == ".safetensors" or path.name.endswith("config.json")
    )
    return {
        "before": {"name": model_name(str(base["name"])), "digest": base["digest"]},
        "after": {
            "name": run.path.resolve().name,
            "digest": weights,
            "kind": folder.name,  # adapter | model
            "files": {path.name: file_digest(path) for path in files},
        },
    }


def _method(run: Run) -> dict[str, Any]:
    config, facts = run.config, run.provenance
    unlearned = run.state["kind"] == "unlearn"
    return {
        "name": config.get("method") or ("an objective of its own" if unlearned else "retraining without the rows"),
        "objective": facts.get("objective"),
        "gradient": facts.get("gradient"),
        "seed": facts.get("seed"),
        "steps": facts.get("steps"),
        "settings": {key: config[key] for key in SETTINGS if config.get(key) is not None},
        "data": {name: {"rows": rows["rows"], "digest": rows["digest"]} for name, rows in facts["data"].items()},
        "started": run.state.get("started"),
        "finished": run.state.get("finished"),
    }


def _suite(suite: Mapping[str, Any]) -> dict[str, Any]:
    """Values, intervals and answers; of what was said about rows nothing."""
    numbers = ("value", "ci", "n", "n_unscored")
    lines = {
        name: {
            **{key: line[key] for key in (*numbers, "metric", "goal") if key in line},
            **{
                role: {key: line[role][key] for key in numbers} if line.get(role) else None
                for role in ("before", "oracle")
            },
        }
        for name, line in suite["metrics"].items()
    }
    answers = {question: found["answer"] for question, found in suite["verdict"].items()}
    return {"metrics": lines, "answers": answers, "limit": suite.get("limit"), "overrides": suite.get("overrides", [])}


def _attacks(run: Run, models: Any) -> list[dict[str, Any]]:
    """Every attack that was made on these very models, and what came back beyond the oracle's."""
    files: Iterable[Path] = sorted((run.path / "attacks").glob("*/attack.json"))
    found: Sequence[Mapping[str, Any]] = [read_json(file) for file in files]
    return [
        {
            "kind": attack["kind"],
            "suite": attack["suite"],
            "limit": attack.get("limit"),
            "excess": {name: line.get("excess") for name, line in attack["metrics"].items()},
        }
        for attack in found
        if attack.get("format") == ATTACK_FORMAT and attack.get("models") == models
    ]
