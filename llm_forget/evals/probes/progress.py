"""Show the progress of an evaluation: as bars in a terminal, or as a plain line every 30 seconds in a log file."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

EVERY = 30.0  # minimum seconds between two lines


@contextmanager
def meter(*, quiet: bool) -> Iterator[Meter]:
    """Yield a meter that prints the progress of all probes of an evaluation to standard error."""
    # Bind the current stream: standard error is redirected while lm-eval runs.
    console = Console(file=sys.stderr)
    columns = (TextColumn("{task.description:32}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    lines = not quiet and not console.is_terminal
    with Progress(*columns, console=console, disable=quiet or lines, transient=True) as bars:
        yield Meter(bars, console if lines else None, time.monotonic())


@dataclass
class Meter:
    """Shows progress as bars, or as lines on ``console``. ``last_line`` is the time of the last line (monotonic)."""

    bars: Progress
    console: Console | None
    last_line: float

    @contextmanager
    def task(self, name: str, total: int | None = None, done: int = 0) -> Iterator[Task]:
        """Yield the progress of one probe of one model, of whose ``total`` records ``done`` exist already."""
        bar = self.bars.add_task(name, total=total, completed=done)
        yield Task(self, bar, name, total, done, 0, time.monotonic())
        self.bars.remove_task(bar)


@dataclass
class Task:
    """Progress of a probe: ``done`` of ``total`` records exist; ``fresh`` of them were measured since ``began``."""

    meter: Meter
    bar: TaskID
    name: str
    total: int | None
    done: int
    fresh: int
    began: float

    def expect(self, total: int) -> None:
        """Reset the progress to 0 of ``total`` records."""
        self.total, self.done, self.fresh, self.began = total, 0, 0, time.monotonic()
        self.meter.bars.update(self.bar, total=total, completed=0)

    def advance(self, count: int) -> None:
        """Add ``count`` records to those that exist."""
        self.done += count
        self.fresh += count
        self.meter.bars.advance(self.bar, count)
        now = time.monotonic()
        if self.meter.console is not None and now - self.meter.last_line >= EVERY:
            self.meter.last_line = now
            line = progress_line(self.name, self.done, self.total, self.fresh, now - self.began)
            self.meter.console.print(line, highlight=False, markup=False, soft_wrap=True)


def progress_line(name: str, done: int, total: int | None, fresh: int, seconds: float) -> str:
    """Return ``name: done/total, 0:01:20 left``. The time is estimated from ``fresh`` records in ``seconds``."""
    if total is None or not fresh:
        return f"{name}: {done}"
    return f"{name}: {done}/{total}, {timedelta(seconds=round((total - done) * seconds / fresh))} left"
