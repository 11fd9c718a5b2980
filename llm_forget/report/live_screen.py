"""Show the progress of a run live: a panel that is redrawn in a terminal, or lines of text in a file or pipe."""

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
from llm_forget.core.run_kinds import kind_named
from llm_forget.core.text import plain
from llm_forget.report import live
from llm_forget.report.live import RunProgress, Watcher

INTERVAL = 1.0  # seconds between two reads
COLOURS = {"running": "cyan", "starting": "cyan", "waiting": "yellow", "stale": "red", "finished": "green",
           "stopped early": "yellow"}  # fmt: skip
ANSWER_STYLES = {"yes": "bold green", "no": "bold red"}
WIDTH = 100  # maximum columns of the panel


def watch(watcher: Watcher, console: Console, *, once: bool = False, every: float = INTERVAL) -> None:
    """Show the progress of a run until it ends. With ``once``, show it once; raise RunError if there is no run."""
    if isinstance(console.file, io.TextIOWrapper):
        console.file.reconfigure(errors="replace")  # replace characters that the terminal cannot print
    progress = watcher.progress()
    if once or progress.ended:
        if once and progress.status == "waiting":
            raise RunError(f"'{watcher.run.path}' is not a run directory: it has no run.json")
        _print(progress, console)
    elif console.is_terminal:
        with Live(panel(progress, console), console=console, auto_refresh=False) as screen:
            for progress in _progress_until_ended(watcher, every):
                screen.update(panel(progress, console), refresh=True)
    else:
        _print_lines(watcher, console, every)


def _progress_until_ended(watcher: Watcher, every: float) -> Iterator[RunProgress]:
    """Yield the progress every ``every`` seconds until the run has ended."""
    while True:
        progress = watcher.progress()
        yield progress
        if progress.ended:
            return
        time.sleep(every)


def _print(progress: RunProgress, console: Console) -> None:
    if console.is_terminal:
        console.print(panel(progress, console))
        return
    for line in live.plain_lines(progress):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _print_lines(watcher: Watcher, console: Console, every: float) -> None:
    """Print the progress as text to a file or pipe each time that status, step or checkpoint changes."""
    last_state = None
    for progress in _progress_until_ended(watcher, every):
        state = (progress.status, progress.step, progress.checkpoint)
        if state != last_state:
            _print(progress, console)
            last_state = state


def panel(progress: RunProgress, console: Console) -> RenderableType:
    """Return a panel with the status, the progress, a row for each logged value, and the verdicts of the evaluation."""
    colour = COLOURS[progress.status]
    width = min(WIDTH, console.width)
    parts: list[RenderableType] = [_about(progress), Text(live.headline(progress), style=colour)]
    if progress.total:
        bar = ProgressBar(
            progress.total, min(progress.step, progress.total), width - 4,
            complete_style=colour, finished_style=colour,
        )  # fmt: skip
        parts.append(Padding(bar, 0))  # padding ends the line after the bar
    if progress.series:
        parts.append(_numbers(progress, width, live.BARS if console.encoding.startswith("utf") else live.PLAIN_BARS))
    parts += list(_answers(progress))
    ascii_only = not console.encoding.startswith("utf")
    title = Text(plain(progress.name), style=f"bold {colour}")
    return Panel(
        Group(*parts), title=title, title_align="left", width=width, box=box.ASCII if ascii_only else box.ROUNDED
    )


def _about(progress: RunProgress) -> Text:
    rows = ", ".join(f"{count:,} {plain(name)}" for name, count in progress.rows.items())
    parts = [progress.kind, progress.method, progress.model and f"on {progress.model}", rows and f"rows: {rows}"]
    return Text("  ".join(plain(part) for part in parts if part), style="dim")


def _numbers(progress: RunProgress, width: int, bars: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=True, header_style="dim")
    table.add_column("", no_wrap=True)
    for name in ("first", "now", "least", "most"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    names = max(len(name) for name in progress.series)
    room = max(8, width - names - 4 * 11 - 8)
    for name, values in progress.series.items():
        numbers = [value for _, value in values]
        cells = [live.four_digits(number) for number in (numbers[0], numbers[-1], min(numbers), max(numbers))]
        style = "bold" if name == "loss" or name.startswith("logps/") else ""
        table.add_row(Text(plain(name), style=style), *cells, Text(live.sparkline(numbers, room, bars), style="cyan"))
    return table


def _answers(progress: RunProgress) -> Iterator[Text]:
    for suite, answers in progress.verdicts.items():
        text = Text(f"suite {plain(suite)}:")
        for question, answer in answers.items():
            text.append(f"  {plain(question)} ")
            text.append(plain(answer), style=ANSWER_STYLES.get(answer, "bold yellow"))
        yield text
    if not progress.verdicts and progress.ended and kind_named(progress.kind or "").forgotten:
        yield Text("no results.json of this version: not evaluated yet", style="dim")
