"""Commands that only look: what is left of texts in files, and how far a run is."""

from __future__ import annotations

from typing import Annotated

import typer

residue = typer.Typer()
SHOWN = 12  # findings of one file that are printed; --json has all


@residue.command("scan-residue")
def scan_residue(
    paths: Annotated[list[str], typer.Argument(metavar="PATH...", help="Files and folders to look through.")],
    canary: Annotated[
        str, typer.Option(help="Texts to look for: rows (.jsonl, .json, .csv, .parquet), or lines of a .txt.")
    ],
    known: Annotated[
        list[str] | None, typer.Option(help="A file that may say the same, such as retain rows; may be repeated.")
    ] = None,
    field: Annotated[
        list[str] | None, typer.Option(help="Look for this column only; may be repeated. Default: all but id.")
    ] = None,
    skip: Annotated[list[str] | None, typer.Option(help="A file or folder to pass over; may be repeated.")] = None,
    window: Annotated[int, typer.Option(help="So many letters and digits in a row are a find, 16 at least.")] = 24,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Find what is left of texts in files: exit code 1 something, 0 nothing, 3 nothing but not all was read.

    Finds them, and parts of them, across line breaks and in any case; in UTF-8, UTF-16, Latin-1, hex, base64, with
    JSON's, URL's and HTML's escapes, in composed and decomposed Unicode; within gzip, bzip2, xz, zstd, zip, Arrow,
    Parquet and SQLite; and in names of files. No text is printed, only the number of the row, file and byte.
    """
    import json
    from pathlib import Path

    from llm_forget.evals.probes.progress import meter
    from llm_forget.residue import scan

    with meter(quiet=as_json) as bars, bars.task("MiB read") as task:
        read = 0

        def progress(done: int, total: int) -> None:
            nonlocal read
            if task.total != total >> 20:
                task.expect(total >> 20)
            task.advance((done >> 20) - read)
            read = done >> 20

        found = scan(
            Path(canary), [Path(path) for path in paths],
            known=[Path(path) for path in known or ()], skip=[Path(path) for path in skip or ()],
            fields=field or (), window=window, progress=progress,
        )  # fmt: skip
    if as_json:
        typer.echo(json.dumps(found.as_dict(), indent=2))
    else:
        for line in found.lines(SHOWN):
            typer.echo(line)
    raise typer.Exit(1 if found.findings else 3 if found.unread or not found.files else 0)


@residue.command()
def watch(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run directory; it may appear later.")],
    once: Annotated[bool, typer.Option("--once", help="Show it as it is now, and leave.")] = False,
) -> None:
    """Watch a running or finished run: loss, log-probs, tokens/s, time left, and its verdicts.

    Reads the files of the run and nothing else, so it works over any launcher and file system, and disturbs nothing.
    Ctrl-C ends the watching, not the run. A line for each step that is logged where output is no terminal.
    """
    from rich.console import Console

    from llm_forget.report.live import Watcher
    from llm_forget.report.live_screen import watch as show

    try:
        show(Watcher(run), Console(), once=once)
    except KeyboardInterrupt:
        raise typer.Exit() from None
