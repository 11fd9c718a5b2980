"""Collect the facts of a certificate about a run: names, digests, numbers, answers, but no ids or texts of rows."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm_forget.compliance.requests.closing_evidence import ClosingEvidence, attacks_on
from llm_forget.core.digests import file_digest
from llm_forget.core.run_directory import models_by_role
from llm_forget.core.run_kinds import kind_of
from llm_forget.core.text import model_name

SETTINGS = (
    "learning_rate", "num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps",
    "lora_r", "lora_alpha", "load_in_4bit", "load_in_8bit", "max_retain_drop", "method_args", "gradient_args",
)  # fmt: skip


def certificate_facts(
    evidence: ClosingEvidence, results: Mapping[str, Any], *, token: str, before: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return the entries of `CertificateFacts` about models, method, environment, evaluation results and attacks.

    Args:
        token: secret key for the digests of rows. A guess of the rows can be confirmed only with this key.
        before: name and digest of the model that knew the rows; None if the ledger has no such model.
    """
    return {
        "artefacts": _artefacts(evidence, before),
        "method": _method(evidence, token),
        "environment": evidence.run.provenance.get("environment", {}),
        "measured_with": results["llm_forget"],
        "models": {
            role: model["digest"] if model else None for role, model in models_by_role(results["models"]).items()
        },
        "suites": {name: _suite(suite) for name, suite in results["suites"].items()},
        "attacks": _attacks(evidence, results),
    }


def _artefacts(evidence: ClosingEvidence, before: Mapping[str, Any] | None) -> dict[str, Any]:
    run, merged = evidence.run, evidence.merged
    if before is None:
        base = run.provenance["base"]
        before = {"name": model_name(str(base["name"])), "digest": base["digest"], "knew": False}
    folder = run.adapter if run.adapter.is_dir() else run.model
    artefact = {
        "name": run.path.resolve().name, "digest": evidence.run_weights, "kind": folder.name, "files": _files(folder),
    }  # fmt: skip
    if merged is None:
        return {"before": dict(before), "after": artefact}
    adapter = evidence.measured_run.adapter
    kind, folder = ("adapter", adapter) if adapter.is_dir() else ("merged", merged.folder)
    after = {"name": merged.name, "digest": merged.weights, "kind": kind, "files": _files(folder)}
    combination = {key: merged.facts[key] for key in ("combination", "sources", "base_precision")}
    return {"before": dict(before), "after": after, "run": artefact, "merged": combination}


def _files(folder: Path) -> dict[str, str]:
    """Return the digests of the safetensors and configuration files of a folder, by file name."""
    files = sorted(
        path for path in folder.iterdir() if path.suffix == ".safetensors" or path.name.endswith("config.json")
    )
    return {path.name: file_digest(path) for path in files}


def keyed_digest(token: str, digest: str) -> str:
    """Return the HMAC of ``digest`` with ``token`` as the key. Only with the token can a guess of rows be confirmed."""
    return f"hmac-sha256:{hmac.new(token.encode(), digest.encode(), 'sha256').hexdigest()}"


def _method(evidence: ClosingEvidence, token: str) -> dict[str, Any]:
    run = evidence.run
    config, facts = run.config, run.provenance
    unlearned = bool(kind_of(run).forgotten)
    data = {
        name: {"rows": rows["rows"], "digest": keyed_digest(token, rows["digest"])}
        for name, rows in facts["data"].items()
    }
    if evidence.subtracted:
        data = {"forget" if name == "train" else name: rows for name, rows in data.items()}
        config = {**config, "method": "subtracting an adapter fine-tuned on the rows (arXiv:2212.04089)"}
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
        **({"calibrated": facts["calibrated"]} if facts.get("calibrated") else {}),
    }


def _suite(suite: Mapping[str, Any]) -> dict[str, Any]:
    """Return values, intervals and answers of a suite, without results of single rows."""
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
    answers = {question: verdict["answer"] for question, verdict in suite["verdict"].items()}
    return {"metrics": lines, "answers": answers, "limit": suite.get("limit"), "overrides": suite.get("overrides", [])}


def _attacks(evidence: ClosingEvidence, results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return each attack on the certified model: kind, suite, limit, and excess by metric (see `attacks.excess`)."""
    return [
        {
            "kind": attack["kind"],
            "suite": attack["suite"],
            "limit": attack.get("limit"),
            "excess": {name: line.get("excess") for name, line in attack["metrics"].items()},
        }
        for attack in attacks_on(evidence, results).values()
    ]
