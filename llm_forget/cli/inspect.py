"""The commands `scan-residue` and `watch`, which only read files."""

from typing import Annotated

import typer

residue = typer.Typer()
SHOWN = 12  # findings of one file that are printed; --json has all


@residue.command("scan-residue")
def scan_residue(
    paths: Annotated[list[str], typer.Argument(metavar="PATH...", help="Files and folders to search.")],
    canary: Annotated[str, typer.Option(help="Texts: rows (.jsonl, .json, .csv, .parquet), or the lines of a .txt.")],
    known: Annotated[list[str] | None, typer.Option(help="Allowed text, such as retain rows; may be repeated.")] = None,
    field: Annotated[list[str] | None, typer.Option(help="Column; may be repeated. Default: all but id.")] = None,
    skip: Annotated[list[str] | None, typer.Option(help="File or folder to skip; may be repeated.")] = None,
    window: Annotated[int, typer.Option(help="Minimum match length in letters and digits (at least 16).")] = 24,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Search files for copies of texts, such as forget rows, or for parts of them.

    Exit code 0: no copy; 1: copies; 3: no copy, but not every file could be searched. The search ignores line breaks
    and case. It covers UTF-8, UTF-16, Latin-1, hex and base64; JSON, URL and HTML escapes; composed and decomposed
    Unicode; gzip, bzip2, xz, zstd, zip, Arrow, Parquet and SQLite; and file names. Prints row numbers, files and byte
    offsets, never text.
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

        findings = scan(
            Path(canary), [Path(path) for path in paths],
            known=[Path(path) for path in known or ()], skip=[Path(path) for path in skip or ()],
            fields=field or (), window=window, progress=progress,
        )  # fmt: skip
    if as_json:
        typer.echo(json.dumps(findings.as_dict(), indent=2))
    else:
        for line in findings.lines(SHOWN):
            typer.echo(line)
    raise typer.Exit(1 if findings.findings else 3 if findings.unread or not findings.files else 0)


@residue.command()
def watch(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run directory; it need not exist yet.")],
    once: Annotated[bool, typer.Option("--once", help="Show the current state and exit.")] = False,
) -> None:
    """Watch a run during or after training: loss, log-probs, tokens/s, time left, and verdicts.

    Reads only the files of the run, so it works with any launcher and does not disturb training. Ctrl-C stops this
    command, not the run. If the output is not a terminal, prints one line for each logged step.
    """
    from rich.console import Console

    from llm_forget.report.live import Watcher
    from llm_forget.report.live_screen import watch as show

    try:
        show(Watcher(run), Console(), once=once)
    except KeyboardInterrupt:
        raise typer.Exit() from None
