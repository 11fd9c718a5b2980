"""How far a run is, from its files alone: whatever started it, on whatever machine, it can be watched.

Nothing is written and nothing is locked. Files may be missing, appear later, or end in half a line.
"""

from __future__ import annotations

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

from llm_forget.core.errors import RunError
from llm_forget.core.run_directory import Run

QUIET = 300.0  # seconds without a new line, at least, after which a run is called stale
FIRST = ("loss", "logps/forget", "logps/retain", "logps/train")
LAST = ("retain_drop", "grad_norm", "learning_rate")
BARS, PLAIN_BARS = "▁▂▃▄▅▆▇█", "_.-=+*#@"


@dataclass
class Sight:
    """What is known of a run at one moment; None where it is not."""

    name: str
    status: str  # waiting | starting | running | stale | finished | stopped early
    kind: str | None = None
    method: str | None = None
    model: str | None = None
    step: int = 0
    total: int | None = None
    seconds_left: float | None = None
    quiet: float = 0.0  # seconds since the last sign of life
    tokens_per_second: float | None = None
    memory: float | None = None  # GiB, most held at once
    seconds: float | None = None  # the whole training took
    checkpoint: int | None = None  # the newest that is whole
    rows: dict[str, int] = field(default_factory=dict)
    series: dict[str, list[tuple[int, float]]] = field(default_factory=dict)  # name of the log -> step, value
    verdicts: dict[str, dict[str, str]] = field(default_factory=dict)  # suite -> question -> answer

    @property
    def over(self) -> bool:
        return self.status in ("finished", "stopped early")


class Watcher:
    """Reads a run directory again and again; of the log only what is new."""

    def __init__(self, path: str | Path) -> None:
        """
        Raises:
            ValueError: the path is a file.
        """
        self.run = Run(Path(path))
        if self.run.path.is_file():
            raise RunError(f"'{path}' is a file; name a run directory")
        self._forget()

    def _forget(self) -> None:
        self.lines: list[dict[str, Any]] = []
        self._file: int | None = None  # inode
        self._read = 0
        self._seen: list[tuple[float, int]] = []  # when which step was logged, as far as it was watched

    def look(self, now: float | None = None) -> Sight:
        """The run as it is at ``now`` (seconds since the epoch)."""
        now = time.time() if now is None else now
        run, state = self.run, _mapping(self.run.state_file)
        self._read_log()
        if not state:
            return Sight(run.path.name, "waiting")
        config, facts = _mapping(run.config_file), _mapping(run.provenance_file)
        checkpoints = _checkpoints(run.checkpoints)
        step = max([_whole(line.get("step")) or 0 for line in self.lines], default=0)
        pace = self._seconds_per_step(step, checkpoints)
        cost = facts.get("cost") if isinstance(facts.get("cost"), dict) else {}
        sight = Sight(
            run.path.name, "running", kind=_text(state.get("kind")), method=_method(config, facts),
            model=_text(config.get("model_name_or_path")), step=step, total=self._total(config, step, checkpoints),
            quiet=max(0.0, now - self._last_sign()), tokens_per_second=self._last("tokens_per_second"),
            memory=_number(cost.get("peak_memory_gib")) or self._last("peak_memory_gib"),
            seconds=_number(cost.get("seconds")), checkpoint=max(checkpoints, default=None), rows=_rows(facts),
            series=self._series(), verdicts=_verdicts(run.results_file),
        )  # fmt: skip
        sight.status = self._status(state, sight, pace)
        if sight.status == "running" and pace is not None and sight.total is not None:
            sight.seconds_left = max(0.0, (sight.total - step) * pace - sight.quiet)
        return sight

    def _read_log(self) -> None:
        """Whole lines that are new; all of them where another file took the place of the one before."""
        try:
            with self.run.metrics_file.open("rb") as file:
                status = self.run.metrics_file.stat()
                if status.st_ino != self._file or status.st_size < self._read:
                    self._forget()
                    self._file = status.st_ino
                file.seek(self._read)
                content = file.read()
        except OSError:
            return
        whole = content[: content.rfind(b"\n") + 1]
        self._read += len(whole)
        for text in whole.split(b"\n"):
            try:
                line = json.loads(text)
            except ValueError:  # half of a line that a killed process wrote
                continue
            if isinstance(line, dict) and _whole(line.get("step")) is not None:
                self.lines.append(line)
        if whole and self.lines:
            self._seen.append((status.st_mtime, self.lines[-1]["step"]))

    def _status(self, state: Mapping[str, Any], sight: Sight, pace: float | None) -> str:
        if state.get("status") == "complete":
            return "stopped early" if any(line.get("stopped_early") for line in self.lines) else "finished"
        steps = [line["step"] for line in self.lines]
        gap = max((later - before for before, later in pairwise(steps)), default=1)
        if sight.quiet > max(QUIET, 10 * gap * (pace or 0.0)):
            return "stale"
        return "running" if self.lines else "starting"

    def _last_sign(self) -> float:
        run = self.run
        files = (run.state_file, run.provenance_file, run.metrics_file, run.checkpoints, *run.checkpoints.glob("*"))
        return max((_changed(path) for path in files), default=0.0)

    def _seconds_per_step(self, step: int, checkpoints: Mapping[int, float]) -> float | None:
        """As watched; before two lines were seen, since the training began, which provenance.json is written at."""
        (first, low), (last, high) = (self._seen[0], self._seen[-1]) if self._seen else ((0.0, 0), (0.0, 0))
        if high > low:
            return (last - first) / (high - low)
        began = _changed(self.run.provenance_file)
        taken_up = max((number for number, written in checkpoints.items() if written <= began), default=0)
        return (last - began) / (step - taken_up) if began and last > began and step > taken_up else None

    def _total(self, config: Mapping[str, Any], step: int, checkpoints: Mapping[int, float]) -> int | None:
        """Steps of the whole run: as transformers wrote it, as the recipe says, or as the epochs give it."""
        if checkpoints:
            known = _mapping(self.run.checkpoints / f"checkpoint-{max(checkpoints)}" / "trainer_state.json")
            if (total := _whole(known.get("max_steps"))) is not None and total > 0:
                return total
        if (total := _whole(config.get("max_steps"))) is not None and total > 0:
            return total
        epochs, done = _number(config.get("num_train_epochs", 5.0)), self._last("epoch")
        if not epochs or not done or not step:
            return None
        return max(step, math.ceil(epochs * step / done - 1e-6))

    def _last(self, key: str) -> float | None:
        return next((value for line in reversed(self.lines) if (value := _number(line.get(key))) is not None), None)

    def _series(self) -> dict[str, list[tuple[int, float]]]:
        keys = dict.fromkeys(key for line in self.lines for key in line if "/" in key or key in (*FIRST, *LAST))
        middle = [key for key in keys if key not in (*FIRST, *LAST)]
        ordered = [key for key in (*FIRST, *middle, *LAST) if key in keys]
        known = {
            key: [(line["step"], value) for line in self.lines if (value := _number(line.get(key))) is not None]
            for key in ordered
        }
        return {key: values for key, values in known.items() if values}


def sparkline(values: Sequence[float], width: int, bars: str = BARS) -> str:
    """Values from left to right as bars between their least and greatest; means of neighbours where they are many."""
    if not values:
        return ""
    size = len(values) / min(width, len(values))
    edges = [round(number * size) for number in range(min(width, len(values)) + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(means), max(means)
    if high == low:
        return bars[0] * len(means)
    return "".join(bars[min(len(bars) - 1, int((mean - low) / (high - low) * len(bars)))] for mean in means)


def plain_lines(sight: Sight) -> Iterator[str]:
    """One sight as text: where the run is, its newest numbers, and the answers where it was evaluated."""
    yield f"{visible(sight.name)}: {headline(sight)}"
    newest = [f"{visible(key)} {shown(values[-1][1])}" for key, values in sight.series.items()]
    if newest:
        yield "  " + ", ".join(newest)
    for suite, answers in sight.verdicts.items():
        told = ", ".join(f"{visible(question)}: {answer}" for question, answer in answers.items())
        yield f"  suite {visible(suite)}: {told or 'asks no question'}"


def headline(sight: Sight) -> str:
    """Status, step, rate, time left, memory: what is known of them."""
    if sight.status == "waiting":
        return "waiting for run.json"
    parts = [sight.status]
    if sight.status == "stale":
        parts[0] += f", nothing new for {duration(sight.quiet)}; if it was stopped, its command goes on"
    if sight.step or sight.total:
        parts.append(f"step {sight.step}" + (f" of {sight.total}" if sight.total else ""))
    if sight.tokens_per_second is not None:
        parts.append(f"{sight.tokens_per_second:,.0f} tokens/s")
    if sight.seconds_left is not None:
        parts.append(f"about {duration(sight.seconds_left)} left")
    if sight.seconds is not None and sight.over:
        parts.append(f"took {duration(sight.seconds)}")
    if sight.memory is not None:
        parts.append(f"peak memory {sight.memory:.1f} GiB")
    if sight.checkpoint is not None and not sight.over:
        parts.append(f"checkpoint {sight.checkpoint}")
    return ", ".join(parts)


def duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def shown(value: float) -> str:
    return f"{value:.4g}"


def visible(text: str) -> str:
    """A name out of a file must not move the cursor or begin a line."""
    return "".join(character if character.isprintable() else "?" for character in text)


def _mapping(path: Path) -> dict[str, Any]:
    """Content of a JSON or YAML file; nothing where it is missing, half-written or something else."""
    try:
        text = path.read_text(encoding="utf-8")
        content = yaml.safe_load(text) if path.suffix == ".yaml" else json.loads(text)
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def _method(config: Mapping[str, Any], facts: Mapping[str, Any]) -> str | None:
    if method := _text(config.get("method")):
        return method
    objective = facts.get("objective")
    sides = objective.items() if isinstance(objective, dict) else ()
    terms = [
        f"{side}/{term['name']}"
        for side, lines in sides
        for term in (lines if isinstance(lines, list) else ())
        if isinstance(term, dict) and "name" in term
    ]
    return " + ".join(terms) or None


def _rows(facts: Mapping[str, Any]) -> dict[str, int]:
    data = facts.get("data")
    found = data.items() if isinstance(data, dict) else ()
    return {name: rows for name, split in found if isinstance(split, dict) and (rows := _whole(split.get("rows")))}


def _verdicts(path: Path) -> dict[str, dict[str, str]]:
    suites = _mapping(path).get("suites")
    found: dict[str, dict[str, str]] = {}
    for name, suite in suites.items() if isinstance(suites, dict) else ():
        verdict = suite.get("verdict") if isinstance(suite, dict) else None
        answers = verdict.items() if isinstance(verdict, dict) else ()
        found[name] = {question: str(said.get("answer")) for question, said in answers if isinstance(said, dict)}
    return found


def _checkpoints(folder: Path) -> dict[int, float]:
    """Numbers of the checkpoints that are whole, and when they were sealed."""
    seals = folder.glob("checkpoint-*/complete.json")
    named = {seal.parent.name.removeprefix("checkpoint-"): _changed(seal) for seal in seals}
    return {int(number): written for number, written in named.items() if number.isdigit()}


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _number(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None
