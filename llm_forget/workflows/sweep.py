"""Run a recipe with every combination of some values, or print the commands for a cluster.

Each combination is an evaluated run in a folder such as ``learning_rate-1e-05_beta-0.1``. ``sweep.json`` contains the
grid, the status of each run and the Pareto-optimal runs. The command also writes a comparison, ``sweep.md``. If the
same sweep is started again, perhaps with more values, only missing runs are trained and evaluated.
"""

import contextlib
import gc
import io
import itertools
import logging
import os
import re
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from trl import ModelConfig

from llm_forget.core import config, formats
from llm_forget.core.config import DataConfig, UnlearnConfig
from llm_forget.core.digests import json_digest
from llm_forget.core.errors import ConfigError, FileSystemError
from llm_forget.core.formats.sweep import Sweep
from llm_forget.core.launch import launch_command
from llm_forget.core.resources import resolve
from llm_forget.core.run_directory import Run, oracle_names
from llm_forget.core.run_kinds.unlearn import UNLEARN
from llm_forget.core.safe_errors import sentence
from llm_forget.evals.results_file import holds_suite
from llm_forget.evals.suite import Suite, load_suite
from llm_forget.models.load import load_tokenizer
from llm_forget.objectives.methods import build_objective
from llm_forget.workflows.evaluate import DEFAULT_SUITE, evaluate
from llm_forget.workflows.sweep_grid import as_name, as_option, checked_axes, short_names
from llm_forget.workflows.unlearn import run_unlearning

logger = logging.getLogger("llm_forget")
# Errors that end only one run. Any other exception stops the sweep.
FAILURES = (ValueError, OSError, FloatingPointError, ImportError, MemoryError, torch.cuda.OutOfMemoryError)
Configs = tuple[DataConfig, UnlearnConfig, ModelConfig]


@dataclass(frozen=True)
class Point:
    """One combination: its run directory, its values, and the command-line options that set them."""

    path: Path
    values: dict[str, Any]
    options: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """A sweep whose recipe, grid and runs are valid."""

    recipe: str  # name or path, as the user wrote it
    file: Path  # file of the recipe
    folder: Path  # folder of the runs
    grid: dict[str, list[Any]]
    suite: str  # names of suites, comma-separated
    points: tuple[Point, ...]

    def suites(self) -> list[Suite]:
        """Load the suites that evaluate the runs."""
        return [load_suite(name) for name in self.suite.split(",")]

    def configs(self, point: Point) -> Configs:
        """Return the configuration of one run. Errors name the run."""
        try:
            return config.from_keys(config.load_yaml(self.file), UnlearnConfig, overrides=point.options)
        except ValueError as error:
            raise ConfigError(f"{point.path.name}: {sentence(error)}") from None

    def missing(self) -> list[Point]:
        """Return the runs that must still be trained or evaluated. With ``overwrite``, these are all runs."""
        if self.configs(self.points[0])[1].overwrite:
            return list(self.points)
        return [point for point in self.points if not self._is_finished(Run(point.path))]

    def _is_finished(self, run: Run) -> bool:
        return run.complete and all(holds_suite(run, suite) for suite in self.suites())


def sweep(
    recipe: str | Path,
    grid: Mapping[str, Sequence[Any]],
    *,
    output_dir: str | Path | None = None,
    suite: str | None = None,
    overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """Unlearn and evaluate every combination, one after another. All are checked before the first is trained.

    Args:
        recipe: a file, or the name of a shipped recipe.
        grid: the values to try for each key. A key is a recipe key, an entry of a mapping (``method_args.beta``), or
            ``lr``, short for ``learning_rate``. The last key changes fastest.
        output_dir: folder of the runs. Default: the recipe's ``output_dir`` with the suffix ``-sweep``.
        suite: suites of the evaluation, comma-separated. Default: the recipe's, otherwise ``basic``.
        overrides: command-line options for every run, such as ``["--seed", "1"]``.

    Returns:
        The content of sweep.json. A failed run has the status ``failed`` and an ``error``, and the sweep continues with
        the next run. With the override ``dry_run``, everything is checked, nothing is written, and missing runs have
        the status ``waiting``.

    Raise ConfigError or MissingFileError if one of the runs is invalid. In this case nothing was trained.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("sweep runs in one process; for several use --plan commands --accelerate_config ddp")
    plan = plan_sweep(recipe, grid, output_dir=output_dir, suite=suite, overrides=overrides)
    _check_all(plan)
    if plan.configs(plan.points[0])[1].dry_run:
        return {**_content(plan, _entries(plan)), "dry_run": True}
    return _execute(plan)


def plan_sweep(
    recipe: str | Path,
    grid: Mapping[str, Sequence[Any]],
    *,
    output_dir: str | Path | None = None,
    suite: str | None = None,
    overrides: Sequence[str] = (),
) -> Plan:
    """Return the plan of a sweep, without reading rows or models. Raise ConfigError if a key or value is invalid."""
    file = resolve("recipes", str(recipe))
    axes = checked_axes(grid, config.keys_of(UnlearnConfig), {*config.CONTROL_KEYS, "suite"})
    output_name = output_dir or config.load_yaml(file).get("output_dir")
    if not output_name:
        raise ConfigError("no output_dir is given; set the folder of the runs, e.g. --output_dir runs/sweep")
    folder = Path(output_dir) if output_dir else Path(f"{output_name}-sweep")
    names = short_names(axes)
    points = []
    for combination in itertools.product(*axes.values()):
        values = dict(zip(axes, combination, strict=True))
        path = folder / "_".join(f"{names[key]}-{as_name(value)}" for key, value in values.items())
        options = [word for key, value in values.items() for word in (f"--{key}", as_option(key, value))]
        points.append(Point(path, values, (*overrides, *options, "--output_dir", str(path))))
    draft = Plan(str(recipe), file, folder, axes, suite or "", tuple(points))
    configs = [draft.configs(point) for point in points]
    _refuse_equal(points, configs)
    plan = Plan(str(recipe), file, folder, axes, suite or configs[0][1].suite or DEFAULT_SUITE, tuple(points))
    for data, train, _ in configs:
        build_objective(train.method, train.method_args, train.objective)
        _check_splits(plan.suites(), data)
    return plan


def _refuse_equal(points: Sequence[Point], configs: Sequence[Configs]) -> None:
    """Raise ConfigError if two combinations have the same configuration."""
    first: dict[str, Point] = {}
    for point, point_configs in zip(points, configs, strict=True):
        digest = json_digest(config.identity(config.resolved(*point_configs)))
        if digest in first:
            raise ConfigError(
                f"'{first[digest].path.name}' and '{point.path.name}' are the same run: a value is given twice, or an "
                "option overrides the grid; remove one of the two"
            )
        first[digest] = point


def _check_splits(suites: Sequence[Suite], data: DataConfig) -> None:
    recipe_splits = {name for name in config.SPLITS if getattr(data, name) is not None}
    for suite in suites:
        missing = sorted(set(suite.splits()) - recipe_splits - set(data.splits or {}) - set(suite.data))
        if missing:
            raise ConfigError(f"suite '{suite.name}' needs rows of {', '.join(missing)}; set them in the recipe")


def _check_all(plan: Plan) -> None:
    """Check every run and its evaluation before the first run is trained."""
    for point in plan.points:
        data, train, model = plan.configs(point)
        run = Run(point.path)
        if run.complete and not train.overwrite:
            # A run from printed commands may have used several processes; their number is part of its identity.
            processes = {k: v for k, v in run.state["identity"].items() if k == "processes"}
            run.refuse_other(UNLEARN.name, config.identity(config.resolved(data, train, model)) | processes)
            continue
        train.dry_run = True
        with contextlib.redirect_stdout(io.StringIO()):  # hide the table of each dry run
            try:
                run_unlearning(data, train, model)
            except (ValueError, OSError) as error:
                kind = ConfigError if isinstance(error, ValueError) else FileSystemError
                raise kind(f"{point.path.name}: {sentence(error)}") from None
    oracles = {oracle for point in plan.points for oracle in oracle_names(plan.configs(point)[1].oracle)}
    for oracle in oracles:
        load_tokenizer(ModelConfig(model_name_or_path=oracle))
    if not oracles:
        logger.warning("no oracle is given, so distances to it will be empty and no run will be on the Pareto front")


def _execute(plan: Plan) -> dict[str, Any]:
    """Train and evaluate the missing runs, and write sweep.json after each run. Return its content."""
    missing, entries = plan.missing(), _entries(plan)
    logger.info("%d runs in '%s', %d already finished", len(entries), plan.folder, len(entries) - len(missing))
    began = time.perf_counter()
    for number, point in enumerate(missing, start=1):
        logger.info("%d of %d: %s", number, len(missing), point.path.name)
        start = time.perf_counter()
        entries[point.path] |= _attempt(plan, point)
        now = time.perf_counter()
        left = (now - began) / number * (len(missing) - number)
        error = entries[point.path]["error"]
        logger.info(
            "%d of %d: %s %s after %s%s", number, len(missing), point.path.name,
            f"failed ({error})" if error else "done", _duration(now - start),
            f"; about {_duration(left)} left" if left else "",
        )  # fmt: skip
        _write(plan, entries)
    return _write(plan, entries)


def _entries(plan: Plan) -> dict[Path, dict[str, Any]]:
    """Return the entries of sweep.json by run directory. Missing runs have the status ``waiting``."""
    missing = plan.missing()
    return {
        p.path: {"name": p.path.name, "path": str(p.path), "values": p.values}
        | {"status": "waiting" if p in missing else "complete", "error": None}
        for p in plan.points
    }


def _attempt(plan: Plan, point: Point) -> dict[str, Any]:
    """Train and evaluate one run. Return its ``status`` and its ``error`` (None if it succeeded)."""
    data, train, model = plan.configs(point)
    run = Run(point.path)
    try:
        if train.overwrite or not run.complete:
            run_unlearning(data, train, model)
        if not all(holds_suite(run, suite) for suite in plan.suites()):
            evaluate(run.path, plan.suite, quiet=True)
    except FAILURES as error:
        return {"status": "failed", "error": sentence(error)}
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()  # so that each run reports its own peak
    return {"status": "complete", "error": None}


def _write(plan: Plan, entries: Mapping[Path, dict[str, Any]]) -> dict[str, Any]:
    content = _content(plan, entries)
    formats.write(plan.folder / "sweep.json", content, Sweep)
    return content


def _content(plan: Plan, entries: Mapping[Path, dict[str, Any]]) -> dict[str, Any]:
    return {
        "format": Sweep.FORMAT,
        "recipe": plan.recipe,
        "output_dir": str(plan.folder),
        "grid": plan.grid,
        "suites": [suite.name for suite in plan.suites()],
        "runs": list(entries.values()),
    }


def add_front(content: dict[str, Any], front: Mapping[str, Sequence[str]]) -> None:
    """Write sweep.json with ``front``, the names of the Pareto-optimal runs for each suite."""
    formats.write(Path(content["output_dir"]) / "sweep.json", {**content, "front": front}, Sweep)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def commands(plan: Plan, *, accelerate_config: str | None = None, num_processes: int | None = None) -> list[str]:
    """Return a shell line for each unfinished run, which unlearns and then evaluates.

    ``num_processes`` replaces the number of processes in the launch configuration ``accelerate_config``. Raise
    ConfigError or MissingFileError if this configuration does not exist or cannot start this number of processes.
    """
    launch: list[str] = []
    if accelerate_config is not None:
        launch_command([], resolve("accelerate_configs", accelerate_config), num_processes)
        launch = ["--accelerate_config", accelerate_config]
        launch += ["--num_processes", str(num_processes)] if num_processes is not None else []
    elif num_processes is not None:
        raise ConfigError("--num_processes needs --accelerate_config: cpu_2, or on GPUs ddp, fsdp2, zero2 or zero3")
    return [
        shlex.join(["llm-forget", "unlearn", plan.recipe, *launch, *point.options])
        + " && "
        + shlex.join(["llm-forget", "evaluate", str(point.path), "--suite", plan.suite])
        for point in plan.missing()
    ]


def slurm_script(lines: Sequence[str], name: str) -> str:
    """Return an sbatch script of an array job in which each task runs one of ``lines`` (at least one)."""
    job = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-") or "sweep"
    points = "\n".join(f"  {shlex.quote(line)}" for line in lines)
    return f"""#!/bin/bash
#SBATCH --job-name={job}
#SBATCH --array=0-{len(lines) - 1}
# Submit it from this folder, with the resources of one run: sbatch --gpus=1 --time=04:00:00 THIS_FILE
# Afterwards run the same sweep without --plan: it compares the runs and repeats none.
set -euo pipefail
points=(
{points}
)
eval "${{points[SLURM_ARRAY_TASK_ID]}}"
"""
