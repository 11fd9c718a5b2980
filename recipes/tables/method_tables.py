"""Tune, train and measure every method of a table over several seeds; write its numbers, docs/methods.md and README.

    python recipes/tables/method_tables.py demo --runs runs/demo-seeds [--quick] [--methods stranger npo] [--seeds 0]
    python recipes/tables/method_tables.py five_authors --runs runs/five_authors --data_path DIR

The plan is ``demo.yaml`` or ``five_authors.yaml`` beside this file. A finished run is not repeated and an interrupted
one resumes, so the same command continues, also with further methods, seeds or parts. Numbers are written after each
run. If a method fails, its error is written into its row, and the next method follows. With further ``--key value``
pairs, or a plan of your own, the numbers do not change the pages.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import yaml
from table_page import RESULTS, render_all
from table_plan import PARTS, Entry, Table, read_table
from table_results import collect
from table_runs import Bench, measure, prepare_seed, tune

from llm_forget.core.files import read_json, write_json
from llm_forget.core.safe_errors import sentence


@dataclass
class Progress:
    """What is done of the runs of a table, and how long the rest takes at the pace so far."""

    total: int
    done: int = 0
    # seconds and number of runs of each step that was not finished before
    seconds: list[tuple[float, int]] = field(default_factory=list)

    def line(self, what: str, seconds: float, runs: int, error: str | None = None) -> str:
        """Count a step of ``runs`` runs, and return the line that reports it."""
        self.done += runs
        if seconds > 10 and error is None:  # a step that only reads finished runs says nothing about the pace
            self.seconds.append((seconds, runs))
        pace = sum(part for part, _ in self.seconds) / max(1, sum(runs for _, runs in self.seconds))
        left = f", about {pace * (self.total - self.done) / 60:.0f} min left" if self.seconds else ""
        outcome = f"failed: {error}" if error else "done"
        return f"[{self.done} of {self.total} runs] {what}: {outcome} after {seconds:.0f} s{left}"


def in_own_process(function: Callable[..., None], *arguments: Any) -> str | None:
    """Call a function in a new process, so that its peak memory is its own, and return the sentence of its error."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        future = pool.submit(_error_of, function, *arguments)
        error = future.exception()  # the process itself ended
    return future.result() if error is None else sentence(error)


def _error_of(function: Callable[..., None], *arguments: Any) -> str | None:
    # The sentence names the place, which is lost when an exception leaves its process.
    try:
        function(*arguments)
    except Exception as error:
        return sentence(error)
    return None


def make_table(bench: Bench, methods: Sequence[Entry], seeds: Sequence[int], parts: Sequence[str]) -> dict[str, Any]:
    """Execute all runs, method by method, write the numbers after each, and return them."""
    errors = earlier_errors(bench.table, methods)
    tuning_seed = bench.table.seeds[0]
    all_seeds = sorted({*bench.table.seeds, *seeds})
    progress = Progress(sum(entry.trials + len({*seeds} - {tuning_seed}) for entry in methods))

    def step(what: str, runs: int, function: Callable[..., None], *arguments: Any) -> str | None:
        began = time.perf_counter()
        error = in_own_process(function, bench, *arguments)
        print(progress.line(what, time.perf_counter() - began, runs, error), flush=True)
        return error

    for seed in sorted({tuning_seed, *seeds}):
        if error := step(f"target and oracle, seed {seed}", 0, prepare_seed, seed):
            raise SystemExit(f"seed {seed}: {error}")
    for entry in methods:
        if error := step(f"{entry.name}, tuning", entry.trials, tune, entry):
            errors[entry.name] = f"tuning: {error}"
        for seed in seeds if error is None else ():
            runs = 0 if seed == tuning_seed else 1  # the run of the tuning is measured
            if error := step(f"{entry.name}, seed {seed}", runs, measure, entry, seed, parts):
                errors[entry.name] = f"seed {seed}: {error}"
            write_json(bench.table.results, collect(bench, all_seeds, errors))
    content = collect(bench, all_seeds, errors)
    write_json(bench.table.results, content)
    return content


def earlier_errors(table: Table, methods: Sequence[Entry]) -> dict[str, str]:
    """Return the errors of an earlier command in the results, of the methods that this one does not try again."""
    if not table.results.is_file():
        return {}
    rows, names = read_json(table.results)["methods"], {entry.name for entry in methods}
    return {name: row["error"] for name, row in rows.items() if row["error"] and name not in names}


def options_of(words: Sequence[str] | None = None) -> tuple[argparse.Namespace, dict[str, Any]]:
    """Parse the command line; further ``--key value`` pairs are keys of every method, for a trial."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", help="demo, five_authors or the file of a plan")
    parser.add_argument("--runs", type=Path, required=True, help="folder of the runs, with those of demo/seeds.py")
    parser.add_argument("--data_path", type=Path, help="folder of TOFU's files, for five_authors")
    parser.add_argument("--methods", nargs="+", help="default: all, in the order of the plan")
    parser.add_argument("--seeds", type=int, nargs="+", help="default: those of the plan")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what is measured")
    parser.add_argument("--quick", action="store_true", help="--parts suites; a later command adds the others")
    options, others = parser.parse_known_args(words)
    if len(others) % 2 or not all(word.startswith("--") for word in others[::2]):
        parser.error("further keys are written as --key value")
    keys = {key[2:]: yaml.safe_load(value) for key, value in zip(others[::2], others[1::2], strict=True)}
    return options, keys


def main(words: Sequence[str] | None = None) -> int:
    """Make one table, and write the pages of all; returns 1 if a method failed."""
    options, keys = options_of(words)
    table = read_table(options.table)
    if keys:  # other numbers than those of the plan are not published
        table = replace(table, results=options.runs / f"{table.name}-trial.json")
    names = options.methods or list(table.methods)
    if unknown := [name for name in names if name not in table.methods]:
        raise SystemExit(f"no method of {table.name} is called {unknown[0]}; it has {', '.join(table.methods)}")
    # Targets and oracles are evaluated once for all methods of a seed, but never read from the cache of an older run.
    os.environ["LLM_FORGET_CACHE"] = str(options.runs.resolve() / "cache")
    bench = Bench(table, options.runs, options.data_path, keys)
    parts = ["suites"] if options.quick else options.parts
    content = make_table(bench, [table.methods[name] for name in names], options.seeds or table.seeds, parts)
    if table.results.resolve() in RESULTS.values():
        render_all()
    return 1 if any(row["error"] for row in content["methods"].values()) else 0


if __name__ == "__main__":
    raise SystemExit(main())
