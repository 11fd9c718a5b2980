"""Run the demo over several seeds, for the README's table, and check the bounds that the README states.

``make demo-seeds``, or ``python recipes/demo/seeds.py --seeds 0 1 2 --runs runs/demo-seeds``. Seed k generates its own
people (``builtin:demo/...?seed=k``) and seeds the training. A finished run is not repeated; to repeat it, remove its
folder. Writes ``results.json`` and ``results.svg`` beside this file, and the table in README.md: numbers only, no text.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from render import render_all

from llm_forget import Run, evaluate, finetune, unlearn
from llm_forget.core.config import load_yaml
from llm_forget.core.files import write_json
from llm_forget.core.text import shown
from llm_forget.evals.results_file import holds_suite, read_results
from llm_forget.evals.suite import load_suite

HERE = Path(__file__).resolve().parent
METHODS = ("stranger", "npo", "grad_diff", "grad_ascent")
SUITES = ("demo", "privacy")
# Lines of the suite privacy in the table: one for each attack.
ATTACKS = ("mia_loss", "mia_zlib", "mia_min_k", "mia_min_k_plus_plus", "mia_reference", "mia_gradnorm")
ROLES = ("before", "unlearned", "oracle")
# The method that must satisfy the bounds of the suites, and the one whose utility it must exceed.
JUDGED, BEATEN = "stranger", "grad_ascent"


def keys_of_stage(name: str, seed: int, runs: Path) -> dict[str, Any]:
    """Load a demo recipe with the people and random seed ``seed``, and its runs under ``runs/<seed>``."""
    keys = load_yaml(HERE / f"{name}.yaml")
    for key in ("train", "forget", "retain", "holdout"):
        if key in keys:
            keys[key] = f"{keys[key]}?seed={seed}"
    keys |= {"seed": seed, "output_dir": str(runs / str(seed) / name)}
    if name in METHODS:
        keys |= {key: str(runs / str(seed) / Path(keys[key]).name) for key in ("model_name_or_path", "oracle")}
    return keys


def run_seed(seed: int, runs: Path) -> dict[str, Any]:
    """Train target and oracle, unlearn with every method and evaluate; returns results, and costs by stage."""
    results, rows, seconds, memory = {}, {}, {}, 0.0
    for name in ("target", "oracle", *METHODS):
        print(f"== seed {seed}: {name}", flush=True)
        train = unlearn if name in METHODS else finetune
        run = train(**keys_of_stage(name, seed, runs))
        rows |= {split: described["rows"] for split, described in run.provenance["data"].items()}
        seconds[name] = run.provenance["cost"]["seconds"]
        memory = max(memory, run.provenance["cost"]["peak_memory_gib"])
        if name in METHODS:
            measured = evaluated(run)
            results[name] = _joined(measured["suites"])
            seconds[f"{name}, evaluate"] = measured["seconds"]
    made = {"machine": run.provenance["environment"], "date": run.state["finished"][:10]}
    return {"results": results, "rows": rows, "seconds": seconds, "peak_memory_gib": memory, **made}


def evaluated(run: Run) -> dict[str, Any]:
    """Return the results of a run; evaluate it if it has none of the suites as they are now."""
    if all(holds_suite(run, load_suite(name)) for name in SUITES):
        return read_results(run)
    return evaluate(run.path, ",".join(SUITES))


def _joined(suites: dict[str, Any]) -> dict[str, Any]:
    """Return lines and verdicts of all suites as of one, without lines that no model has a value of."""
    lines = {name: line for suite in SUITES for name, line in suites[suite]["metrics"].items()}
    scored = {name for name, line in lines.items() if line["value"] is not None or line["before"]["value"] is not None}
    metrics = {name: line for name, line in lines.items() if name in scored}
    shown_lines = {name: line for name, line in metrics.items() if name in suites["demo"]["metrics"] or name in ATTACKS}
    return {"metrics": shown_lines, "verdict": {q: v for suite in SUITES for q, v in suites[suite]["verdict"].items()}}


def spread(values: Sequence[float | None]) -> dict[str, Any]:
    """Summarise values by seed with median, minimum and maximum; unscored values stay null and are ignored."""
    known = [value for value in values if value is not None]
    rounded = [None if value is None else float(f"{value:.6g}") for value in values]
    if not known:
        return {"values": rounded, "median": None, "min": None, "max": None}
    summary = {"median": statistics.median(known), "min": min(known), "max": max(known)}
    return {"values": rounded, **{key: float(f"{value:.6g}") for key, value in summary.items()}}


def metrics_of(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Summarise every line of the suite over the seeds, for the three models."""
    lines = {}
    for name, line in results[0]["metrics"].items():
        by_seed = [result["metrics"][name] for result in results]
        roles = {"unlearned": by_seed} | {role: [found[role] for found in by_seed] for role in ("before", "oracle")}
        lines[name] = {"goal": line["goal"], "n": line["n"]} | {
            role: spread([found["value"] for found in roles[role]]) for role in ROLES
        }
    return lines


def checks_of(results: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Check one seed: the bounds of the suites, and more utility than gradient ascent."""
    verdict = results[JUDGED]["verdict"].values()
    found = [(finding["sentence"], finding["holds"]) for answer in verdict for finding in answer["findings"]]
    ours, theirs = (results[name]["metrics"]["utility"]["value"] for name in (JUDGED, BEATEN))
    found.append((f"utility {shown(ours)} ({BEATEN} {shown(theirs)}; more)", ours > theirs))
    return [{"bound": sentence, "holds": holds} for sentence, holds in found]


def collect(by_seed: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """Return the content of results.json; machine and versions come from the runs."""
    first = next(iter(by_seed.values()))
    machine = first["machine"]
    return {
        "date": max(seed["date"] for seed in by_seed.values()),
        "suites": SUITES,
        "judged": JUDGED,
        "seeds": list(by_seed),
        "rows": first["rows"],
        "methods": {name: metrics_of([seed["results"][name] for seed in by_seed.values()]) for name in METHODS},
        "checks": {str(number): checks_of(seed["results"]) for number, seed in by_seed.items()},
        "seconds": {stage: spread([seed["seconds"][stage] for seed in by_seed.values()]) for stage in first["seconds"]},
        "peak_memory_gib": max(seed["peak_memory_gib"] for seed in by_seed.values()),
        "hardware": {"device": machine["device"], "cores": os.cpu_count(), "threads": machine["threads"]},
        "versions": {key: machine[key] for key in ("llm_forget", "python")} | machine["packages"],
    }


def show_checks(results: dict[str, Any]) -> bool:
    """Print whether each bound holds for each seed; returns True if all do."""
    for seed, checks in results["checks"].items():
        print(f"seed {seed}: {JUDGED}")
        for check in checks:
            print(f"  {'holds ' if check['holds'] else 'BROKEN'} {check['bound']}")
    return all(check["holds"] for checks in results["checks"].values() for check in checks)


def main() -> int:
    """Execute missing runs, and write results, table and picture; returns 1 if a bound is violated."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs/demo-seeds"))
    given = parser.parse_args()
    # Target and oracle are evaluated once for all methods of a seed, but never read from the cache of an older run.
    os.environ["LLM_FORGET_CACHE"] = str(given.runs / "cache")
    results = collect({seed: run_seed(seed, given.runs) for seed in given.seeds})
    write_json(HERE / "results.json", results)
    render_all()
    return 0 if show_checks(results) else 1


if __name__ == "__main__":
    raise SystemExit(main())
