"""A measured run made of numbers: what `evaluate` leaves behind, without a model."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from llm_forget.evals.stats import auc_with_interval, ks_p_value, mean_with_interval

N = 30
ROLES = ("before", "unlearned", "oracle")
MEANS = {  # of each line, for the three models
    "forget_probability": (0.9, 0.2, 0.15),
    "extraction_strength": (0.95, 0.45, 0.4),
    "forget_ratio": (0.4, 1.4, 1.6),
    "retain_probability": (0.9, 0.85, 0.88),
}
METRICS = {"forget_probability": "probability", "forget_ratio": "truth_ratio", "mia_min_k": "membership_auc"}
MEMBERS = {"before": 3.0, "unlearned": -1.0, "oracle": 0.0}  # how much higher members score than others
MakeRun = Callable[..., Path]


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def line(value: float, ci: Any = None, n: int = N) -> dict[str, Any]:
    return {"value": value, "ci": list(ci) if ci else None, "n": n, "n_unscored": 0}


def measured(roles: tuple[str, ...], ids: list[str], shift: float) -> tuple[dict[str, Any], dict[str, Any]]:
    """Metric lines and rows of one suite; ``shift`` moves the unlearned model's forget lines."""
    metrics, rows = json.loads(_measured_once(roles, tuple(ids), shift))
    return metrics, rows


@functools.cache
def _measured_once(roles: tuple[str, ...], ids: tuple[str, ...], shift: float) -> str:
    """JSON of what `measured` returns: most runs have the same numbers, and their intervals take long."""
    generator, lines, rows = np.random.default_rng(0), {}, {}
    for name, means in MEANS.items():
        noise = generator.uniform(-0.05, 0.05, (3, N))
        moved = {
            role: mean + shift * (role == "unlearned" and name != "retain_probability")
            for role, mean in zip(ROLES, means, strict=True)
        }
        values = {role: moved[role] + noise[i] for i, role in enumerate(ROLES) if role in roles}
        rows[name] = {r: {"rows": {"ids": ids, "values": [float(v) for v in vs]}} for r, vs in values.items()}
        lines[name] = {role: line((s := mean_with_interval(v)).value, s.ci) for role, v in values.items()}
    # The unlearned model avoids its members: they stand out by low scores.
    scores = {role: generator.normal(0, 1, (2, N)) + np.array([[MEMBERS[role]], [0]]) for role in roles}
    rows["mia_min_k"] = {
        role: {
            "members": {"ids": ids, "values": pair[0].tolist()},
            "nonmembers": {"ids": [f"h{i}" for i in range(N)], "values": pair[1].tolist()},
        }
        for role, pair in scores.items()
    }
    lines["mia_min_k"] = {role: line((e := auc_with_interval(*pair)).value, e.ci) for role, pair in scores.items()}
    if "oracle" in roles:
        ratio = {r: np.array(rows["forget_ratio"][r]["rows"]["values"]) for r in roles}
        lines["forget_quality"] = {r: line(ks_p_value(v, ratio["oracle"])) for r, v in ratio.items()}
    goals = {"forget_quality": "higher", "retain_probability": "keep"}
    metrics = {
        name: {**by["unlearned"], "goal": goals.get(name, "match_oracle"), "metric": METRICS.get(name, name),
               "before": by.get("before"), "oracle": by.get("oracle")}
        for name, by in lines.items()
    }  # fmt: skip
    return json.dumps([metrics, rows])


@pytest.fixture
def make_measured_run(tmp_path: Path) -> MakeRun:
    """``make_measured_run("npo")`` writes a run and gives its folder."""

    def make(
        name: str = "npo",
        *,
        roles: tuple[str, ...] = ROLES,
        ids: list[str] | None = None,
        shift: float = 0.0,
        with_rows: bool = True,
        suite: str = "basic",
        **config: Any,
    ) -> Path:
        folder = tmp_path / name
        metrics, rows = measured(roles, ids or [f"row-{i:02d}" for i in range(N)], shift)
        finding = {
            "of": "oracle",
            "holds": True,
            "sentence": "forget_probability 0.200 (oracle 0.150; at most 1.5 times)",
        }
        verdict = {"forgot": {"answer": "yes", "before": "no", "findings": [finding]}}
        models = {
            r: {"name": r if r != "unlearned" else name, "digest": f"digest-{r}"} if r in roles else None for r in ROLES
        }
        suites = {suite: {"metrics": metrics, "verdict": verdict, "limit": None, "overrides": [], "probes": {}}}
        write(
            folder / "results.json",
            {"format": 2, "llm_forget": "0.1.0", "models": models, "suites": suites, "seconds": 4.0},
        )
        if with_rows:
            write(folder / "rows.json", {suite: rows})
        write(folder / "run.json", {"kind": "unlearn", "status": "complete", "finished": "2026-01-02T00:00:00+00:00"})
        (folder / "config.yaml").write_text(yaml.safe_dump({"method": "npo", **config}))
        write(folder / "provenance.json", provenance(seconds=10.0))
        log = [
            {"step": s, "loss": 1.0 / s, "forget/npo": 1.0 / s, "retain/nll": 0.1, "logps/forget": -s,
             "logps/retain": -0.1, "tokens_per_second": 100.0}
            for s in (1, 2, 3)
        ]  # fmt: skip
        (folder / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in log))
        return folder

    return make


def provenance(seconds: float) -> dict[str, Any]:
    """What a training run writes about itself."""
    return {
        "kind": "unlearn",
        "base": {
            "name": "/home/somebody/secret-folder/target",
            "revision": "main",
            "digest": "sha256:ab",
            "parameters": 12,
        },
        "data": {"forget": {"rows": N, "digest": "sha256:cd", "ids": ["row-00"]}},
        "objective": {"forget": [{"name": "npo", "weight": 1.0, "beta": 0.1}]},
        "seed": 7,
        "environment": {"llm_forget": "0.1.0", "packages": {"torch": "2.13"}, "git_commit": "c0ffee", "device": "cpu"},
        "steps": 3,
        "cost": {"seconds": seconds, "peak_memory_gib": 0.5, "resumed": False},
    }


@pytest.fixture
def make_oracle_run(tmp_path: Path) -> Callable[[float], Path]:
    """The run that made the oracle, beside the others."""

    def make(seconds: float) -> Path:
        folder = tmp_path / "oracle"
        write(folder / "run.json", {"kind": "finetune", "status": "complete"})
        write(folder / "provenance.json", provenance(seconds))
        return folder

    return make
