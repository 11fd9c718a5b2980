"""What a certificate says about a run, taken from its files: names, digests, numbers and answers; no ids, no texts."""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_forget.core import formats
from llm_forget.core.digests import file_digest
from llm_forget.core.formats.results import Attack
from llm_forget.core.run_directory import Run
from llm_forget.core.run_kinds import kind_of
from llm_forget.core.text import model_name

if TYPE_CHECKING:
    from llm_forget.compliance.requests.closing_evidence import Closer

SETTINGS = (
    "learning_rate", "num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps",
    "lora_r", "lora_alpha", "load_in_4bit", "load_in_8bit", "max_retain_drop", "method_args", "gradient_args",
)  # fmt: skip


def facts_of(
    closer: Closer, results: Mapping[str, Any], *, token: str, knew: Mapping[str, Any] | None
) -> dict[str, Any]:
    """What was made of what and how, what was measured, and what attacks found.

    Args:
        closer: the run, and what was merged from it, where that is certified.
        results: of `read_results`, of what is certified.
        token: the request's own, under which digests of rows are keyed: who guesses the rows cannot confirm it.
        knew: name and digest of the model that knew the rows; None where nothing is known of one.
    """
    return {
        "artefacts": _artefacts(closer, knew),
        "method": _method(closer, token),
        "environment": closer.run.provenance.get("environment", {}),
        "measured_with": results["llm_forget"],
        "models": {role: model["digest"] if model else None for role, model in results["models"].items()},
        "suites": {name: _suite(suite) for name, suite in results["suites"].items()},
        "attacks": _attacks(closer.measured, results["models"]),
    }


def _artefacts(closer: Closer, knew: Mapping[str, Any] | None) -> dict[str, Any]:
    run, merged = closer.run, closer.merged
    base = {**run.provenance["base"], "name": model_name(str(run.provenance["base"]["name"]))}
    before = dict(knew) if knew is not None else {"name": base["name"], "digest": base["digest"], "knew": False}
    folder = run.adapter if run.adapter.is_dir() else run.model
    made = {"name": run.path.resolve().name, "digest": closer.made, "kind": folder.name, "files": _files(folder)}
    if merged is None:
        return {"before": before, "after": made}
    as_adapter = closer.measured.adapter.is_dir()
    place = closer.measured.adapter if as_adapter else merged.folder
    kind = "adapter" if as_adapter else "merged"
    after = {"name": merged.name, "digest": merged.weights, "kind": kind, "files": _files(place)}
    how = {key: merged.facts[key] for key in ("combination", "sources", "base_precision")}
    return {"before": before, "after": after, "run": made, "merged": how}


def _files(folder: Path) -> dict[str, str]:
    """Digests of weights and configurations."""
    files = sorted(
        path for path in folder.iterdir() if path.suffix == ".safetensors" or path.name.endswith("config.json")
    )
    return {path.name: file_digest(path) for path in files}


def keyed(token: str, digest: str) -> str:
    """A digest that only who has the token can compare with anything."""
    return f"hmac-sha256:{hmac.new(token.encode(), digest.encode(), 'sha256').hexdigest()}"


def _method(closer: Closer, token: str) -> dict[str, Any]:
    run = closer.run
    config, facts = run.config, run.provenance
    unlearned = bool(kind_of(run).forgotten)
    data = {
        name: {"rows": rows["rows"], "digest": keyed(token, rows["digest"])} for name, rows in facts["data"].items()
    }
    if closer.taken_away:
        data = {"forget" if name == "train" else name: found for name, found in data.items()}
        config = {**config, "method": "taking away what fine-tuning on the rows changed (arXiv:2212.04089)"}
    return {
        "name": config.get("method") or ("an objective of its own" if unlearned else "retraining without the rows"),
        "objective": facts.get("objective"),
        "gradient": facts.get("gradient"),
        "seed": facts.get("seed"),
        "steps": facts.get("steps"),
        "settings": {key: config[key] for key in SETTINGS if config.get(key) is not None},
        "data": data,
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
    reports = (formats.read_if_current(file, Attack) for file in files)
    return [
        {
            "kind": attack["kind"],
            "suite": attack["suite"],
            "limit": attack.get("limit"),
            "excess": {name: line.get("excess") for name, line in attack["metrics"].items()},
        }
        for attack in reports
        if attack is not None and attack["models"] == models
    ]
