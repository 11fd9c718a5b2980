"""The runs of a table of methods: models of a seed, tuning, and the measured run of a method and seed.

Each function continues where an interrupted one stopped, and repeats nothing that is finished.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from author_rows import write_author_rows, write_rows
from table_plan import Entry, Table, Trial, choose, keys_of_method, keys_of_model, with_other_answers

from llm_forget import Run, attack, calibrate, evaluate, finetune, sweep
from llm_forget.core import formats
from llm_forget.core.config import UnlearnConfig, from_keys
from llm_forget.core.errors import ConfigError, RunError
from llm_forget.core.files import read_json, write_atomic, write_json
from llm_forget.core.formats.results import RowScores
from llm_forget.data.demo_people import load_builtin
from llm_forget.evals.results_file import current_attacks, holds_suite, read_attacks, read_results
from llm_forget.evals.suite import load_suite
from llm_forget.training.distillation.teacher_pass import teacher_spec
from llm_forget.workflows.auxiliary_models import train_auxiliary_models
from llm_forget.workflows.sweep_grid import as_option
from llm_forget.workflows.unlearn import main as unlearn

SMALLEST = 1e-300  # a probability of 0 is the rounding of one below


@dataclass(frozen=True)
class Bench:
    """Where the runs of a table are, and which keys and rows they all have."""

    table: Table
    runs: Path
    data_path: Path | None = None
    keys: Mapping[str, Any] | None = None  # that replace those of every method, for a trial of the table

    def folder(self, seed: int) -> Path:
        return self.runs / str(seed)

    def methods_of(self, seed: int) -> Path:
        return self.folder(seed) / "methods"

    @property
    def rows(self) -> dict[str, str]:
        """Return the key for the folder of the rows that methods are trained and measured on."""
        folder = self.runs / "author_rows" if self.table.author_rows else self.data_path
        return {} if folder is None else {"data_path": str(folder)}


def prepare_seed(bench: Bench, seed: int) -> None:
    """Train target and oracle of a seed; for the first seed of the table, measure the target on holdout rows."""
    table, folder = bench.table, bench.folder(seed)
    if table.author_rows:
        if bench.data_path is None:
            raise ConfigError("the rows of this table are files of TOFU; give their folder: --data_path DIR")
        write_author_rows(bench.data_path, Path(bench.rows["data_path"]))
    data_path = {} if bench.data_path is None else {"data_path": str(bench.data_path)}
    for role, recipe in (("target", table.target), ("oracle", table.oracle)):
        run = finetune(**keys_of_model(recipe, role, seed, folder), **data_path, disable_tqdm=True)
        shutil.rmtree(run.checkpoints, ignore_errors=True)
    levels = folder / "holdout_levels.json"
    if seed == table.seeds[0] and not levels.is_file():
        keys = keys_of_method(table, Entry("npo", {}), seed, folder) | bench.rows
        write_json(levels, calibrate(**keys)["holdout"])


def tune(bench: Bench, entry: Entry) -> None:
    """Train the trials of a method on the first seed, and evaluate them with the suite of the choice.

    Raises RunError if no trial succeeds.
    """
    seed = bench.table.seeds[0]
    recipe = write_recipe(bench, entry, seed)
    folder = bench.methods_of(seed) / entry.name
    content = sweep(recipe, entry.grid, output_dir=folder, suite=bench.table.choice["suite"])
    for run in content["runs"]:
        shutil.rmtree(Path(run["path"]) / "checkpoints", ignore_errors=True)
    if all(run["status"] == "failed" for run in content["runs"]):
        raise RunError(content["runs"][0]["error"])


def measure(bench: Bench, entry: Entry, seed: int, parts: Sequence[str]) -> None:
    """Train a method with the chosen values and a seed, and measure it; the run of the tuning is used again."""
    trial = choice_of(bench, entry)
    words = [word for key, value in trial.values.items() for word in (f"--{key}", as_option(key, value))]
    run = Run(run_folder(bench, entry, seed, trial))
    if not run.complete:
        run = unlearn([str(write_recipe(bench, entry, seed)), *words, "--output_dir", str(run.path)])
        shutil.rmtree(run.checkpoints, ignore_errors=True)
    missing = [suite for suite in bench.table.suites(parts) if not holds_suite(run, load_suite(suite))]
    if missing:
        evaluate(run.path, ",".join(missing), quiet=True)
    if "attacks" in parts:
        for kind, settings in bench.table.parts["attacks"].items():
            if attack_of(bench.table, run, kind) is None:
                attack(run.path, kind, bench.table.attacked_suite, **settings)


def run_folder(bench: Bench, entry: Entry, seed: int, trial: Trial) -> Path:
    """Return the run directory of a method with the chosen values."""
    return bench.methods_of(seed) / entry.name / trial.name


def attack_of(table: Table, run: Run, kind: str) -> dict[str, Any] | None:
    """Return the content of attack.json of an attack with the settings of the table, if the run has it."""
    settings, suite = table.parts["attacks"][kind], table.attacked_suite
    for content in current_attacks(read_attacks(run), read_results(run)).values():
        same_settings = all(content["settings"].get(key) == value for key, value in settings.items())
        if content["kind"] == kind and content["suite"] == suite and same_settings:
            return content
    return None


def write_recipe(bench: Bench, entry: Entry, seed: int) -> Path:
    """Write the recipe of a method for a seed, without the values of its grid, and return the file."""
    folder = bench.folder(seed)
    keys = keys_of_method(bench.table, entry, seed, folder) | bench.rows
    if start := first_run(bench, entry, seed):
        keys["model_name_or_path"] = str(start.path)
    if entry.alternates:
        rows, others = (load_builtin(f"demo/{split}?seed={seed}") for split in ("forget", "retain"))
        write_rows(Path(keys["forget"]), with_other_answers(rows, others))
    keys |= {"disable_tqdm": True, **(bench.keys or {})}
    if entry.keys.get("teacher", {}).get("base"):
        keys["teacher"] = _with_shared_models(keys, folder / "pair")
    file = folder / "recipes" / f"{entry.name}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(file, yaml.safe_dump(keys, sort_keys=False, allow_unicode=True))
    return file


def _with_shared_models(keys: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Train the models of a teacher once per seed, and return the teacher with their runs in place of a base."""
    data, train, model = from_keys({**keys, "output_dir": str(folder)}, UnlearnConfig)
    spec = teacher_spec(train.teacher, str(train.oracle))
    assert spec is not None
    form = {key: value for key, value in keys["teacher"].items() if key not in ("base", "auxiliary")}
    return form | train_auxiliary_models(spec, data, train, model).models


def choice_of(bench: Bench, entry: Entry) -> Trial:
    """Return the trial of a method that the table's rule chooses.

    Raises RunError if the method is not tuned.
    """
    folder = bench.methods_of(bench.table.seeds[0])
    file = folder / entry.name / "sweep.json"
    if not file.is_file():
        raise RunError(f"{entry.name} is not tuned; add it to --methods")
    suite = bench.table.choice["suite"]
    runs = [(Run(Path(row["path"])), row["values"]) for row in read_json(file)["runs"]]
    done = [(run, values) for run, values in runs if run.complete and holds_suite(run, load_suite(suite))]
    if not done:
        raise RunError(f"{entry.name} has no finished trial; start the same command again")
    target = _target_value(bench, entry, done[0][0])
    trials = [trial_of(run, values, bench.table.choice, target) for run, values in done]
    holdout = read_json(bench.folder(bench.table.seeds[0]) / "holdout_levels.json")
    return choose(trials, holdout, bench.table.choice["at_least"])


def first_run(bench: Bench, entry: Entry, seed: int) -> Run | None:
    """Return the run that a method of two steps starts from; None for a method that starts from the target."""
    if entry.after is None:
        return None
    first = bench.table.methods[entry.after]
    return Run(run_folder(bench, first, seed, choice_of(bench, first)))


def _target_value(bench: Bench, entry: Entry, trial: Run) -> float:
    """Return the target's value of the line of the choice: that before the first step of a method."""
    start = first_run(bench, entry, bench.table.seeds[0]) or trial
    choice = bench.table.choice
    return float(read_results(start)["suites"][choice["suite"]]["metrics"][choice["line"]]["before"]["value"])


def trial_of(run: Run, values: dict[str, Any], choice: Mapping[str, Any], target: float) -> Trial:
    """Read the levels of a run of the tuning from its results, and the share of the target's value that it retains."""
    lines = read_results(run)["suites"][choice["suite"]]["metrics"]
    retained = (lines[choice["line"]]["value"] or 0.0) / target
    levels = {"strength": lines["extraction_strength"]["value"], "memorization": lines["exact_memorization"]["value"]}
    levels["logprob"] = logprob_level(run, choice["suite"], "unlearned") or math.log(SMALLEST)
    return Trial(run.path.name, values, retained, levels)


def logprob_level(run: Run, suite: str, role: str) -> float | None:
    """Return the mean log-prob of a token of the forget rows, nats: the mean over rows of log probability."""
    rows = formats.read_content(run.rows_file, RowScores)
    scores = rows[suite]["forget_probability"].get(role)
    values = [value for value in scores["rows"]["values"] if value is not None] if scores else []
    return sum(math.log(max(value, SMALLEST)) for value in values) / len(values) if values else None
