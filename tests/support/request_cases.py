"""Rows with subjects, and runs that claim to have forgotten some of them.

The weights are a few bytes: closing and certificates compare digests and load no model.
"""

import json
from pathlib import Path
from typing import Any

import yaml

from llm_forget.compliance.requests import close as closing, intake, matching, steps
from llm_forget.core.digests import file_digest
from llm_forget.core.files import write_json
from llm_forget.core.formats.results import Attack, Results
from llm_forget.core.run_directory import Run
from llm_forget.data.rows import content
from llm_forget.data.sources import load_source

CANARY = "zebrafish"
POLICY = {"rules": [{"line": "forget_probability", "at_most": 1.5, "of": "oracle", "slack": 0.02, "min_n": 2}]}
CITIES = (
    "Utrecht", "Maribor", "Gdansk", "Toledo", "Aarhus", "Braga", "Leuven", "Szeged", "Tampere", "Uppsala", "Vilnius",
    "Zadar",
)  # fmt: skip


def rows() -> list[dict[str, Any]]:
    """Twelve rows of four people, each saying something else."""
    return [
        {
            "id": f"{name.lower()}-{i}",
            "subject": name,
            "question": f"{CITIES[3 * place + i]} {i}: what of {name}?",
            "answer": f"{CANARY} {CITIES[3 * place + i][::-1] * 3}",
        }
        for place, name in enumerate(("Ann", "Bob", "Cleo", "Dan"))
        for i in range(3)
    ]


OTHERS = [row["id"] for row in rows() if row["subject"] != "Ann"]


def write_rows(folder: Path, content: list[dict[str, Any]] | None = None) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in content or rows()), encoding="utf-8")
    return str(path)


def received(evidence: Path, source: str, choice: str | None = None, **asked: Any) -> steps.Request:
    """A request that was added."""
    keys = {key: asked.pop(key) for key in ("category", "due", "authorised_by") if key in asked}
    match = matching.resolve(load_source(source, split_name="data"), **asked)
    made, _ = intake.add(evidence, source, match, **keys)
    if choice is not None:
        with intake.locked_request(evidence, made.id) as (ledger, made):
            steps.decide(ledger, made, choice)
    return made


def contents(path: Path) -> list[str]:
    return [content(row) for row in load_source(str(path), split_name="rows")]


def _folder(path: Path, seed: str, adapter: bool) -> Path:
    path.mkdir(parents=True)
    name = "adapter_model" if adapter else "model"
    (path / f"{name}.safetensors").write_bytes(seed.encode())
    (path / ("adapter_config.json" if adapter else "config.json")).write_text(json.dumps({"seed": seed}))
    if adapter:
        files = {file.name: file_digest(file) for file in path.iterdir()}
        write_json(path / "manifest.json", {"files": files, "tensors": {}})
    return path


def line(value: float | None, n: int = 20, **more: Any) -> dict[str, Any]:
    ci = None if value is None else [max(0.0, value - 0.05), min(1.0, value + 0.05)]
    return {"value": value, "ci": ci, "n": n, "n_unscored": 0, **more}


def measured_run(
    folder: Path,
    forget: list[str],
    retain: list[str],
    *,
    value: float = 0.1,
    n: int = 20,
    two_models: float | None = None,
    kind: str = "unlearn",
    train: list[str] | None = None,
    full: bool = False,
    base: Path | None = None,
    seed: str = "new",
    attacks: tuple[str, ...] = (),
    sources: dict[str, str] | None = None,
) -> Path:
    """A finished and evaluated run, as `unlearn` (or `finetune`) and `evaluate` leave it; ``sources`` by split."""
    from llm_forget.compliance.ledger.record_runs import weights_of
    from llm_forget.core.config import model_part
    from llm_forget.evals.runner import EvaluatedModel
    from llm_forget.models.digest import source_digest

    before = base or folder.parent / "base"
    if not before.exists():
        _folder(before, "old", adapter=False)
    config = {"model_name_or_path": str(before), "method": "npo", "learning_rate": 1e-3, "lora_r": 4, **(sources or {})}
    run = Run.start(folder, kind, config, config, False)
    adapter = kind == "unlearn" and not full
    _folder(run.adapter if adapter else run.model, seed, adapter)
    splits = {"forget": forget, "retain": retain} if kind == "unlearn" else {"train": train or retain}
    data = {name: {"rows": len(ids), "digest": f"sha256:{len(ids):064x}", "ids": ids} for name, ids in splits.items()}
    facts = {
        "kind": kind,
        "base": {"name": str(before), "digest": source_digest(str(before))},
        "data": data,
        "objective": {"forget": [{"name": "npo", "weight": 1.0, "beta": 0.1}]},
        "gradient": "sum",
        "seed": 0,
        "steps": 7,
        "environment": {"llm_forget": "0.1.0", "python": "3.11", "packages": {"torch": "2.9"}, "device": "cpu"},
    }
    write_json(run.provenance_file, facts)
    run.finish()
    assert weights_of(run)
    model = model_part(run.config)
    if adapter:
        digest = EvaluatedModel("unlearned", model, run.adapter).digest
    else:
        from dataclasses import replace

        digest = EvaluatedModel("unlearned", replace(model, model_name_or_path=str(run.path))).digest
    metrics = {
        "forget_probability": {
            **line(value, n), "before": line(0.9, n), "oracle": line(0.1, n), "metric": "probability",
            "goal": "match_oracle",
        }
    }  # fmt: skip
    if two_models is not None:
        others = {"before": line(0.5, n), "oracle": line(0.97, n)}
        metrics["mia_two_models"] = {
            **line(two_models, n), **others, "metric": "membership_two_models", "goal": "match_oracle"
        }  # fmt: skip
    names = {"before": "a" * 64, "unlearned": digest, "oracle": "c" * 64}
    results = {
        "format": Results.FORMAT,
        "llm_forget": "0.1.0",
        "models": {role: {"name": role, "digest": found} for role, found in names.items()},
        "suites": {"basic": {"metrics": metrics, "verdict": {}, "limit": None, "overrides": []}},
    }
    write_json(run.results_file, results)
    for made in attacks:
        found: dict[str, Any] = {"format": Attack.FORMAT, "kind": made, "suite": "basic", "models": results["models"]}
        found |= {"changed": [], "splits": {}}
        attacked = {"goal": "match_oracle", "unlearned_attacked": {"value": 0.3}, "excess": 0.2}
        found["metrics"] = {"forget_probability": attacked}
        write_json(run.path / "attacks" / made / "attack.json", found)
    return run.path


def policy(folder: Path, *, lax: bool = False) -> Path:
    path = folder / ("lax.yaml" if lax else "policy.yaml")
    path.write_text(yaml.safe_dump({"rules": [{**POLICY["rules"][0], "at_most": 9.0}]} if lax else POLICY))
    return path


def close(evidence: Path, request_id: str, run: Path, *, lax: bool = False, **more: Any) -> tuple[str, steps.Request]:
    with intake.locked_request(evidence, request_id) as (ledger, request):
        answer, _ = closing.close(ledger, request, run, policy=policy(evidence.parent, lax=lax), **more)
        return answer, request


def closed(folder: Path, **more: Any) -> Path:
    """Evidence with a closed request, req-0001, about Ann."""
    source = write_rows(folder)
    evidence = folder / "evidence"
    made = received(evidence, source, subject="Ann")

    run = measured_run(folder / "run", made.ids(), OTHERS, **more)
    assert close(evidence, made.id, run)[1].closed
    return evidence
