"""A run on the screen: drawn again and again in a terminal, line by line where output goes elsewhere."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from llm_forget.core.errors import RunError
from llm_forget.report.live import BARS, PLAIN_BARS, Sight, Watcher, headline, plain_lines, shown, sparkline, visible

EVERY = 1.0  # seconds between two looks
COLOURS = {"running": "cyan", "starting": "cyan", "waiting": "yellow", "stale": "red", "finished": "green",
           "stopped early": "yellow"}  # fmt: skip
ANSWERS = {"yes": "bold green", "no": "bold red"}
WIDTH = 100  # columns of the panel at most


def watch(watcher: Watcher, console: Console, *, once: bool = False, every: float = EVERY) -> None:
    """Show a run until it is over, or ``once``.

    Raises:
        ValueError: ``once``, and there is no run.
    """
    if isinstance(console.file, io.TextIOWrapper):
        console.file.reconfigure(errors="replace")  # a name that a terminal cannot show is no reason to stop
    sight = watcher.look()
    if once or sight.over:
        if once and sight.status == "waiting":
            raise RunError(f"'{watcher.run.path}' is not a run directory: it has no run.json")
        _print(sight, console)
    elif console.is_terminal:
        with Live(drawn(sight, console), console=console, auto_refresh=False) as screen:
            for sight in _sights(watcher, every):
                screen.update(drawn(sight, console), refresh=True)
    else:
        _print_lines(watcher, console, every)


def _sights(watcher: Watcher, every: float) -> Iterator[Sight]:
    """The last of them is of a run that is over."""
    while True:
        sight = watcher.look()
        yield sight
        if sight.over:
            return
        time.sleep(every)


def _print(sight: Sight, console: Console) -> None:
    if console.is_terminal:
        console.print(drawn(sight, console))
        return
    for line in plain_lines(sight):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _print_lines(watcher: Watcher, console: Console, every: float) -> None:
    """The same for a file or a pipe: where something is new, what is new."""
    before = None
    for sight in _sights(watcher, every):
        now = (sight.status, sight.step, sight.checkpoint)
        if now != before:
            _print(sight, console)
            before = now


def drawn(sight: Sight, console: Console) -> RenderableType:
    """Status and progress, a row for each number that was logged, the answers of an evaluation."""
    colour = COLOURS[sight.status]
    width = min(WIDTH, console.width)
    parts: list[RenderableType] = [_about(sight), Text(headline(sight), style=colour)]
    if sight.total:
        styles = {"complete_style": colour, "finished_style": colour}
        bar = ProgressBar(sight.total, min(sight.step, sight.total), width=width - 4, **styles)
        parts.append(Padding(bar, 0))  # the bar alone ends no line
    if sight.series:
        parts.append(_numbers(sight, width, BARS if console.encoding.startswith("utf") else PLAIN_BARS))
    parts += list(_answers(sight))
    ascii_only = not console.encoding.startswith("utf")
    title = Text(visible(sight.name), style=f"bold {colour}")
    return Panel(
        Group(*parts), title=title, title_align="left", width=width, box=box.ASCII if ascii_only else box.ROUNDED
    )


def _about(sight: Sight) -> Text:
    rows = ", ".join(f"{count:,} {visible(name)}" for name, count in sight.rows.items())
    parts = [sight.kind, sight.method, sight.model and f"on {sight.model}", rows and f"rows: {rows}"]
    return Text("  ".join(visible(part) for part in parts if part), style="dim")


def _numbers(sight: Sight, width: int, bars: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=True, header_style="dim")
    table.add_column("", no_wrap=True)
    for name in ("first", "now", "least", "most"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    names = max(len(name) for name in sight.series)
    room = max(8, width - names - 4 * 11 - 8)
    for name, values in sight.series.items():
        numbers = [value for _, value in values]
        cells = [shown(number) for number in (numbers[0], numbers[-1], min(numbers), max(numbers))]
        style = "bold" if name == "loss" or name.startswith("logps/") else ""
        table.add_row(Text(visible(name), style=style), *cells, Text(sparkline(numbers, room, bars), style="cyan"))
    return table


def _answers(sight: Sight) -> Iterator[Text]:
    for suite, answers in sight.verdicts.items():
        text = Text(f"suite {visible(suite)}:")
        for question, answer in answers.items():
            text.append(f"  {visible(question)} ")
            text.append(visible(answer), style=ANSWERS.get(answer, "bold yellow"))
        yield text
    if not sight.verdicts and sight.over and sight.kind == "unlearn":
        yield Text("no results.json of this version: not evaluated yet", style="dim")
