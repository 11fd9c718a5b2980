"""Collect the numbers of a table of methods from its runs: a median and a range over seeds, no text."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from table_plan import Entry, Table
from table_runs import Bench, attack_of, choice_of, first_run, logprob_level, run_folder

from llm_forget import Run
from llm_forget.core.errors import RunError
from llm_forget.evals.results_file import read_results

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "demo"))  # the demo's script has the sums over seeds

from seeds import spread

# Column -> the line of a suite; the first that the run has.
LINES = {
    "forget_probability": ("forget_probability",),
    "extraction_strength": ("extraction_strength",),
    "exact_memorization": ("exact_memorization",),
    "fact_leak": ("fact_leak",),
    "kl_to_oracle": ("kl_to_oracle",),
    "forget_quality": ("forget_quality",),
    "utility": ("utility", "model_utility"),
    "mia_loss": ("mia_loss",),
    "mia_zlib": ("mia_zlib",),
    "mia_min_k": ("mia_min_k",),
    "mia_min_k_plus_plus": ("mia_min_k_plus_plus",),
    "mia_reference": ("mia_reference",),
    "mia_gradnorm": ("mia_gradnorm",),
    "repetition": ("forget_repetition",),
    "perplexity": ("forget_perplexity",),
    "leak_at_16": ("leak_at_16",),
    "worst_phrasing": ("worst_phrasing_fact_leak",),
}
ATTACKED_LINE = "extraction_strength"
ROLES = {"target": "before", "oracle": "oracle"}  # rows that are not methods
Numbers = dict[str, float | None]


def numbers_of_run(table: Table, run: Run, role: str = "unlearned") -> Numbers:
    """Return the value of each column for one model of a measured run, without its cost."""
    suites = read_results(run)["suites"]
    names = [suite for suite in reversed((*table.suites(tuple(table.parts)), table.choice["suite"])) if suite in suites]
    metrics = {name: line for suite in names for name, line in suites[suite]["metrics"].items()}
    numbers: Numbers = {}
    for column, lines in LINES.items():
        line = next((metrics[name] for name in lines if name in metrics), None)
        part = line if line is None or role == "unlearned" else line.get(role)
        numbers[column] = None if part is None else part["value"]
    measured = next(suite for suite in reversed(names) if "forget_probability" in suites[suite]["metrics"])
    numbers["logprob"] = logprob_level(run, measured, role)
    return numbers


def excess_of_run(table: Table, run: Run) -> Numbers:
    """Return what each attack recovers of the extraction strength beyond the oracle's."""
    contents = {kind: attack_of(table, run, kind) for kind in table.parts["attacks"]}
    excess = {kind: content and content["metrics"][ATTACKED_LINE].get("excess") for kind, content in contents.items()}
    return {f"{kind}_excess": value for kind, value in excess.items()}


def whole_cost(*costs: Mapping[str, Any]) -> Numbers:
    """Return seconds and tokens of the steps of a method, and the peak memory in GiB.

    A step is training, teacher and auxiliary models together. The models of a teacher count in full, also those that
    another run of the table has trained.
    """
    parts = [
        part
        for cost in costs
        for part in (cost, *([cost["teacher"]] if "teacher" in cost else []), *cost.get("auxiliary", {}).values())
    ]
    tokens = [part["tokens"] for part in parts if "tokens" in part]
    return {
        "seconds": round(sum(part.get("seconds", 0.0) for part in parts), 1),
        "tokens": sum(tokens) if all("tokens" in cost for cost in costs) else None,
        "peak_memory_gib": max(cost["peak_memory_gib"] for cost in costs),
    }


def summary(by_seed: Mapping[int, Numbers]) -> dict[str, Any]:
    """Summarise each column over the seeds."""
    columns = list(dict.fromkeys(column for numbers in by_seed.values() for column in numbers))
    values = {column: [numbers.get(column) for numbers in by_seed.values()] for column in columns}
    return {"seeds": list(by_seed), "columns": {column: spread(values[column]) for column in columns}}


def collect(bench: Bench, seeds: Sequence[int], errors: Mapping[str, str]) -> dict[str, Any]:
    """Return the content of methods.json: of every method, the seeds that are measured so far."""
    runs = {name: _measured_runs(bench, entry, seeds) for name, entry in bench.table.methods.items()}
    rows = {
        name: _row(bench, bench.table.methods[name], by_seed, errors.get(name))
        for name, by_seed in runs.items()
        if by_seed or name in errors
    }
    firsts = {seed: run for by_seed in reversed(runs.values()) for seed, run in by_seed.items() if not _is_second(run)}
    for title, role in ROLES.items():
        by_seed = {
            seed: numbers_of_run(bench.table, run, role)
            | whole_cost(Run(bench.folder(seed) / title).provenance["cost"])
            for seed, run in sorted(firsts.items())
        }
        rows[title] = {"title": title, "error": None, **summary(by_seed)}
    ordered = {name: rows[name] for name in ("target", *runs, "oracle") if name in rows}
    return {**_facts(bench.table, list(firsts.values())), "methods": ordered}


def _row(bench: Bench, entry: Entry, runs: Mapping[int, Run], error: str | None) -> dict[str, Any]:
    """Return the row of a method: the chosen values, and the numbers of the seeds that are measured."""
    numbers = {
        seed: numbers_of_run(bench.table, run) | excess_of_run(bench.table, run) | _cost(bench, entry, seed, run)
        for seed, run in runs.items()
    }
    return {"title": entry.title or entry.name, "error": error, **_choice(bench, entry), **summary(numbers)}


def _cost(bench: Bench, entry: Entry, seed: int, run: Run) -> Numbers:
    steps = (first_run(bench, entry, seed), run)
    return whole_cost(*(step.provenance["cost"] for step in steps if step is not None))


def _measured_runs(bench: Bench, entry: Entry, seeds: Sequence[int]) -> dict[int, Run]:
    """Return the runs of a method that have at least the results of the first suite, by seed."""
    try:
        trial = choice_of(bench, entry)
    except RunError:
        return {}
    first = bench.table.parts["suites"][0]
    runs = {seed: Run(run_folder(bench, entry, seed, trial)) for seed in seeds}
    return {
        seed: run
        for seed, run in runs.items()
        if run.complete and run.results_file.is_file() and first in read_results(run)["suites"]
    }


def _choice(bench: Bench, entry: Entry) -> dict[str, Any]:
    try:
        trial = choice_of(bench, entry)
    except RunError:
        return {}
    return {"chosen": trial.values, "retained": trial.retained >= bench.table.choice["at_least"]}


def _is_second(run: Run) -> bool:
    """Return whether a run starts from another unlearned run, so that its column `before` is not the target."""
    return Path(run.config["model_name_or_path"]).name != "target"


def _facts(table: Table, runs: Sequence[Run]) -> dict[str, Any]:
    """Return what the table was measured on; empty without a measured run."""
    if not runs:
        return {}
    provenance = runs[0].provenance
    machine, forget = provenance["environment"], provenance["data"]["forget"]
    return {
        "date": max(run.state["finished"][:10] for run in runs),
        "budget": table.budget,
        "choice": table.choice,
        "rows": {split: described["rows"] for split, described in provenance["data"].items()},
        "subjects": len({*forget.get("subjects", ())} - {None}) or None,
        "epochs": runs[0].config["num_train_epochs"],
        "batch": runs[0].config["per_device_train_batch_size"],
        "hardware": {"device": machine["device"], "cores": os.cpu_count(), "threads": machine["threads"]},
        "versions": {key: machine[key] for key in ("llm_forget", "python")} | machine["packages"],
    }
