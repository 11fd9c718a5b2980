"""Follow the advice that `evaluate` gives after a *no*, until all verdicts are *yes*: one case for each fault.

``python recipes/demo/advice.py --runs runs/demo-seeds`` needs the target and the oracle of seed 0 there, from
`seeds.py`. A finished run is not repeated. Writes ``advice.json`` beside this file, and the table in docs/verdicts.md:
no text.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import yaml
from render import insert
from seeds import HERE, SUITES, evaluated, keys_of_stage

from llm_forget import unlearn
from llm_forget.core.config import load_yaml
from llm_forget.core.files import write_atomic, write_json
from llm_forget.core.text import shown
from llm_forget.evals.advice import advice

PAGE = HERE.parents[1] / "docs" / "verdicts.md"
STRANGER = load_yaml(HERE / "stranger.yaml")
TEACHER = {
    key: STRANGER[key]
    for key in ("method", "method_args", "teacher", "learning_rate", "num_train_epochs", "lora_r", "lora_alpha")
}
# A teacher says where to go, and NPO goes on lowering the true answers.
TOO_MUCH = {
    "forget": [{"name": "distil", "temperature": 1.0}, {"name": "npo", "beta": 0.12, "weight": 0.1}],
    "retain": {"name": "nll"},
}
# Fault: recipe, the keys that cause it (None: without it), and the changes that the advice asks for.
CASES: dict[str, tuple[str, dict[str, Any], tuple[dict[str, Any], ...]]] = {
    "under-forgotten": (
        "stranger",
        {"learning_rate": 1.0e-4},
        ({"learning_rate": 3.0e-4}, {"learning_rate": 1.0e-3}, {"learning_rate": 3.0e-3}),
    ),
    "over-forgotten": (
        "stranger",
        {"method": None, "method_args": None, "objective": TOO_MUCH, "stop_at": "end"},
        ({"stop_at": "holdout"}, {"num_train_epochs": 6}, {"learning_rate": 1.0e-3}),
    ),
    "garbled": ("grad_ascent", {}, (TEACHER,)),
}
LINES = ("extraction_strength", "forget_repetition", "mia_min_k", "retain_probability")


def follow(fault: str, runs: Path) -> list[dict[str, Any]]:
    """Return what each run of a case changed and got, up to the first whose verdicts are all *yes*."""
    name, cause, changes = CASES[fault]
    keys = keys_of_stage(name, 0, runs)
    steps: list[dict[str, Any]] = []
    for change in (cause, *changes):
        keys |= {**change, "output_dir": str(runs / "0" / f"advice-{fault}-{len(steps)}")}
        print(f"== {fault}: {change}", flush=True)
        run = unlearn(**{key: value for key, value in keys.items() if value is not None})
        steps.append({"recipe": name, "change": change, **judged(run)})
        if set(steps[-1]["verdicts"].values()) == {"yes"}:
            break
    return steps


def judged(run: Any) -> dict[str, Any]:
    """Return the verdicts, the advice and some lines of a run."""
    suites = evaluated(run)["suites"]
    lines = {name: line["value"] for suite in SUITES for name, line in suites[suite]["metrics"].items()}
    return {
        "verdicts": {name: verdict["answer"] for suite in SUITES for name, verdict in suites[suite]["verdict"].items()},
        "advice": advice(suites),
        "lines": {name: lines[name] for name in LINES},
    }


def table(cases: dict[str, list[dict[str, Any]]]) -> str:
    """Format a Markdown table with one row per run."""
    titles = ["recipe", "change", "verdicts", "advice", *LINES]
    rows = [titles, ["---"] * 4 + ["---:"] * len(LINES)]
    for steps in cases.values():
        for step in steps:
            change = "; ".join(_written(key, value) for key, value in step["change"].items())
            verdicts = ", ".join(f"{question} {answer}" for question, answer in step["verdicts"].items())
            kind = (step["advice"] or "").partition(":")[0]
            rows.append([f"`{step['recipe']}`", change or "as it is", verdicts, kind] + [
                shown(step["lines"][name]) for name in LINES
            ])  # fmt: skip
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _written(key: str, value: Any) -> str:
    """Return a change as it is written in a recipe."""
    if value is None:
        return f"without `{key}`"
    line = yaml.safe_dump({key: value}, default_flow_style=True, sort_keys=False, width=1000).strip()
    return f"`{line[1:-1]}`"


def main() -> int:
    """Follow the advice in all cases; returns 1 if one does not end with *yes* to every question."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/demo-seeds"))
    runs = parser.parse_args().runs
    os.environ["LLM_FORGET_CACHE"] = str(runs / "cache")
    cases = {fault: follow(fault, runs) for fault in CASES}
    write_json(HERE / "advice.json", cases)
    write_atomic(PAGE, insert(PAGE.read_text(encoding="utf-8"), "advice", table(cases)))
    return 0 if all(set(steps[-1]["verdicts"].values()) == {"yes"} for steps in cases.values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
