"""Read the progress of a run from its files. A file may be missing, appear later, or end in an incomplete line."""

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from llm_forget.core import formats
from llm_forget.core.errors import LlmForgetError, RunError
from llm_forget.core.formats.results import Results
from llm_forget.core.formats.run import LogLine, Provenance, RunState
from llm_forget.core.run_directory import Run
from llm_forget.core.text import plain

QUIET = 300.0  # seconds without a changed file after which a run is stale; a run with slow steps has more time
FIRST_SERIES = ("loss", "logps/forget", "logps/retain", "logps/train")
LAST_SERIES = ("retain_drop", "grad_norm", "learning_rate")
BARS, PLAIN_BARS = "▁▂▃▄▅▆▇█", "_.-=+*#@"


@dataclass
class RunProgress:
    """The progress of a run at one moment. Unknown values are None."""

    name: str
    status: str  # waiting | starting | running | stale | finished | stopped early
    kind: str | None = None
    method: str | None = None
    model: str | None = None
    step: int = 0
    total: int | None = None  # number of steps of the whole training
    seconds_left: float | None = None
    quiet: float = 0.0  # seconds since a file of the run last changed
    tokens_per_second: float | None = None
    memory: float | None = None  # GiB, peak
    seconds: float | None = None  # duration of the whole training
    checkpoint: int | None = None  # step of the newest complete checkpoint
    rows: dict[str, int] = field(default_factory=dict)  # split -> number of rows
    series: dict[str, list[tuple[int, float]]] = field(default_factory=dict)  # log key -> (step, value)
    verdicts: dict[str, dict[str, str]] = field(default_factory=dict)  # suite -> question -> answer
    problem: str | None = None  # why run.json cannot be read

    @property
    def ended(self) -> bool:
        """Whether the run has finished or stopped early."""
        return self.status in ("finished", "stopped early")


class Watcher:
    """Reads the progress of a run directory repeatedly. Each reading parses only the new lines of the log."""

    def __init__(self, path: str | Path) -> None:
        """Watch the run directory ``path``, which need not exist yet; raise RunError if it is a file."""
        self.run = Run(Path(path))
        if self.run.path.is_file():
            raise RunError(f"'{path}' is a file; name a run directory")
        self._reset()

    def _reset(self) -> None:
        self.lines: list[dict[str, Any]] = []
        self._inode: int | None = None
        self._offset = 0
        self._observations: list[tuple[float, int]] = []  # (time, step) of log lines seen while watching

    def progress(self, now: float | None = None) -> RunProgress:
        """Return the progress at the time ``now``, in seconds since the epoch; default: the present."""
        now = time.time() if now is None else now
        run, state = self.run, formats.read_if_valid(self.run.state_file, RunState)
        self._read_log()
        if state is None:
            return RunProgress(run.path.name, "waiting", problem=_problem(run.state_file))
        recipe = _mapping(run.config_file)
        facts = formats.read_if_valid(run.provenance_file, Provenance)
        cost = (facts and facts.cost) or None
        checkpoints = _checkpoints(run.checkpoints)
        step = max((line["step"] for line in self.lines), default=0)
        pace = self._seconds_per_step(step, checkpoints)
        progress = RunProgress(
            run.path.name, "running", kind=state.kind, method=_text(recipe.get("method")) or _terms(facts),
            model=_text(recipe.get("model_name_or_path")), step=step, total=self._total(recipe, step, checkpoints),
            quiet=max(0.0, now - self._last_change()), tokens_per_second=self._last("tokens_per_second"),
            memory=(cost and cost.peak_memory_gib) or self._last("peak_memory_gib"), seconds=cost and cost.seconds,
            checkpoint=max(checkpoints, default=None), rows=_rows(facts), series=self._series(),
            verdicts=_verdicts(run.results_file),
        )  # fmt: skip
        progress.status = self._status(state, progress, pace)
        if progress.status == "running" and pace is not None and progress.total is not None:
            progress.seconds_left = max(0.0, (progress.total - step) * pace - progress.quiet)
        return progress

    def _read_log(self) -> None:
        """Read the new complete lines of the log. If the log file was replaced, read it from its start."""
        try:
            with self.run.metrics_file.open("rb") as file:
                status = self.run.metrics_file.stat()
                if status.st_ino != self._inode or status.st_size < self._offset:
                    self._reset()
                    self._inode = status.st_ino
                file.seek(self._offset)
                content = file.read()
        except OSError:
            return
        whole = content[: content.rfind(b"\n") + 1]
        self._offset += len(whole)
        self.lines += formats.whole_lines(whole.split(b"\n"), LogLine)
        if whole and self.lines:
            self._observations.append((status.st_mtime, self.lines[-1]["step"]))

    def _status(self, state: RunState, progress: RunProgress, pace: float | None) -> str:
        if state.status == "complete":
            return "stopped early" if any(line.get("stopped_early") for line in self.lines) else "finished"
        steps = [line["step"] for line in self.lines]
        longest_gap = max((later - earlier for earlier, later in pairwise(steps)), default=1)
        if progress.quiet > max(QUIET, 10 * longest_gap * (pace or 0.0)):
            return "stale"
        return "running" if self.lines else "starting"

    def _last_change(self) -> float:
        run = self.run
        files = (run.state_file, run.provenance_file, run.metrics_file, run.checkpoints, *run.checkpoints.glob("*"))
        return max((_changed(path) for path in files), default=0.0)

    def _seconds_per_step(self, step: int, checkpoints: Mapping[int, float]) -> float | None:
        """Return the mean number of seconds per step since watching began; without a new step since then, the mean
        since training was started or resumed. Return None if unknown.
        """
        (first, low), (last, high) = (
            (self._observations[0], self._observations[-1]) if self._observations else ((0.0, 0), (0.0, 0))
        )
        if high > low:
            return (last - first) / (high - low)
        training_start = _changed(self.run.provenance_file)
        resumed_step = max(
            (checkpoint_step for checkpoint_step, written in checkpoints.items() if written <= training_start),
            default=0,
        )
        if training_start and last > training_start and step > resumed_step:
            return (last - training_start) / (step - resumed_step)
        return None

    def _total(self, recipe: Mapping[str, Any], step: int, checkpoints: Mapping[int, float]) -> int | None:
        """Return the number of training steps, from files of the run or estimated from its epochs; None if unknown."""
        newest = self.run.checkpoints / f"checkpoint-{max(checkpoints, default=0)}" / "trainer_state.json"
        for total in (_number(content.get("max_steps")) for content in (_mapping(newest), recipe)):
            if total is not None and total > 0:
                return round(total)
        epochs, epochs_done = _number(recipe.get("num_train_epochs", 5.0)), self._last("epoch")
        if not epochs or not epochs_done or not step:
            return None
        return max(step, math.ceil(epochs * step / epochs_done - 1e-6))

    def _last(self, key: str) -> float | None:
        return next((value for line in reversed(self.lines) if (value := _number(line.get(key))) is not None), None)

    def _series(self) -> dict[str, list[tuple[int, float]]]:
        keys = dict.fromkeys(
            key for line in self.lines for key in line if "/" in key or key in (*FIRST_SERIES, *LAST_SERIES)
        )
        middle = [key for key in keys if key not in (*FIRST_SERIES, *LAST_SERIES)]
        ordered = [key for key in (*FIRST_SERIES, *middle, *LAST_SERIES) if key in keys]
        points = {
            key: [(line["step"], value) for line in self.lines if (value := _number(line.get(key))) is not None]
            for key in ordered
        }
        return {key: values for key, values in points.items() if values}


def sparkline(values: Sequence[float], width: int, bars: str = BARS) -> str:
    """Draw values as bar characters, scaled to their range. Neighbours are averaged to fit ``width`` characters."""
    if not values:
        return ""
    size = len(values) / min(width, len(values))
    edges = [round(number * size) for number in range(min(width, len(values)) + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(means), max(means)
    if high == low:
        return bars[0] * len(means)
    return "".join(bars[min(len(bars) - 1, int((mean - low) / (high - low) * len(bars)))] for mean in means)


def plain_lines(progress: RunProgress) -> Iterator[str]:
    """Yield the progress as lines of text: status, latest values, and the verdicts if the run was evaluated."""
    yield f"{plain(progress.name)}: {headline(progress)}"
    newest = [f"{plain(key)} {four_digits(values[-1][1])}" for key, values in progress.series.items()]
    if newest:
        yield "  " + ", ".join(newest)
    for suite, answers in progress.verdicts.items():
        answer_list = ", ".join(f"{plain(question)}: {answer}" for question, answer in answers.items())
        yield f"  suite {plain(suite)}: {answer_list or 'asks no question'}"


def headline(progress: RunProgress) -> str:
    """Return one line with the status, step, rate, time left and memory of a run. Unknown values are left out."""
    if progress.status == "waiting":
        return plain(progress.problem) if progress.problem else "waiting for run.json"
    parts = [progress.status]
    if progress.status == "stale":
        parts[0] += f", nothing new for {duration(progress.quiet)}; if it was stopped, run its command again to resume"
    if progress.step or progress.total:
        parts.append(f"step {progress.step}" + (f" of {progress.total}" if progress.total else ""))
    if progress.tokens_per_second is not None:
        parts.append(f"{progress.tokens_per_second:,.0f} tokens/s")
    if progress.seconds_left is not None:
        parts.append(f"about {duration(progress.seconds_left)} left")
    if progress.seconds is not None and progress.ended:
        parts.append(f"took {duration(progress.seconds)}")
    if progress.memory is not None:
        parts.append(f"peak memory {progress.memory:.1f} GiB")
    if progress.checkpoint is not None and not progress.ended:
        parts.append(f"checkpoint {progress.checkpoint}")
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """Format a number of seconds as ``h:mm:ss``."""
    return str(timedelta(seconds=round(seconds)))


def four_digits(value: float) -> str:
    """Format a value with four significant digits."""
    return f"{value:.4g}"


def _mapping(path: Path) -> dict[str, Any]:
    """Return the content of a JSON or YAML file; empty if the file is missing, incomplete or not a mapping."""
    try:
        text = path.read_text(encoding="utf-8")
        content = yaml.safe_load(text) if path.suffix == ".yaml" else json.loads(text)
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def _problem(path: Path) -> str | None:
    """Return the reason why a state file (run.json) is invalid; None if it is valid or does not exist."""
    try:
        formats.read(path, RunState)
    except FileNotFoundError:
        return None
    except LlmForgetError as error:
        return str(error)
    return None


def _terms(facts: Provenance | None) -> str | None:
    """Return the terms of the objective as text, such as ``forget/npo + retain/nll``; None if unknown."""
    objective = (facts and facts.objective) or {}
    terms = [f"{split}/{term['name']}" for split, terms in objective.items() for term in terms if "name" in term]
    return " + ".join(terms) or None


def _rows(facts: Provenance | None) -> dict[str, int]:
    data = (facts and facts.data) or {}
    return {split: rows.rows for split, rows in data.items() if rows.rows}


def _verdicts(path: Path) -> dict[str, dict[str, str]]:
    results = formats.read_if_valid(path, Results)
    suites = results.suites if results is not None else {}
    return {name: {question: v.answer for question, v in suite.verdict.items()} for name, suite in suites.items()}


def _checkpoints(folder: Path) -> dict[int, float]:
    """Map the step of each complete checkpoint to the time of its completion, in seconds since the epoch."""
    seals = folder.glob("checkpoint-*/complete.json")
    seal_times = {seal.parent.name.removeprefix("checkpoint-"): _changed(seal) for seal in seals}
    return {int(step): written for step, written in seal_times.items() if step.isdigit()}


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _number(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None
