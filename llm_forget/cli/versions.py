"""Commands for versions of a model: add, list, switch, compare, remove. Heavy imports are inside the commands."""

from typing import Annotated, Any

import typer

from llm_forget.cli.options import EVIDENCE, Evidence

versions = typer.Typer(no_args_is_help=True, help="Keep versions of a model: add, list, use, roll back, purge.")
AlsoUnjudged = Annotated[
    bool,
    typer.Option(
        "--unjudged",
        help="Use it although its data can no longer be checked against deletions (its keys were erased first).",
    ),
]
Identity = Annotated[str, typer.Argument(metavar="ID", help="Id of a version, or a prefix of it.")]


@versions.command()
def add(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A finished run of finetune or unlearn.")],
    evidence: Evidence = EVIDENCE,
) -> None:
    """Store the model of a run as a version, and record the rows that it was trained on in the ledger.

    The id is a digest of the content, so equal content gives one version. If the run started from another run, that run
    is added as well. After `evaluate`, add the run again to copy its results. The version in use does not change.
    """
    from llm_forget.compliance.versions.versions import add_version

    typer.echo(add_version(evidence, run))


@versions.command("list")
def list_versions(evidence: Evidence = EVIDENCE) -> None:
    """List the versions: origin, results, which one is in use, and which contain deleted data."""
    from llm_forget.compliance.versions.versions import exclusion_reasons, list_versions as list_all

    all_versions, reasons = list_all(evidence), exclusion_reasons(evidence)
    if not all_versions:
        typer.echo("no versions yet; add one with llm-forget versions add RUN")
        return
    names = {version.id: version.run for version, _, _ in all_versions}
    rows = [
        [
            f"{version.id}{' *' if in_use else ''}",
            version.added.partition("+")[0].replace("T", " "),
            version.run,
            names.get(version.parent or "", "-"),
            _method(evidence, version.id),
            _verdicts(evidence, version.id),
            "purged" if version.purged else f"no: holds {', '.join(ids)}" if ids else reasons.get(version.id, "yes"),
        ]
        for version, in_use, ids in all_versions
    ]
    _table(["id (* in use)", "made (UTC)", "from run", "parent", "method", "forgot / kept", "clean"], rows)


@versions.command()
def show(
    version: Annotated[str | None, typer.Argument(metavar="[ID]", help="Default: the version in use.")] = None,
    path: Annotated[bool, typer.Option("--path", help="Print only the folder, usable as a model name.")] = False,
    evidence: Evidence = EVIDENCE,
) -> None:
    """Show a version, or with `--path` its folder: `llm-forget evaluate $(llm-forget versions show --path)`.

    `--path` prints a warning on stderr if the version contains deleted data, or if this can no longer be determined.
    """
    from llm_forget.compliance.versions.diff import describe
    from llm_forget.compliance.versions.versions import exclusion_reasons, path_of

    if path:
        folder = path_of(evidence, version)
        if reason := exclusion_reasons(evidence).get(folder.parent.name):
            typer.echo(f"llm-forget: warning: version {folder.parent.name} {reason}", err=True)
        typer.echo(folder)
        return
    description = describe(evidence, version)
    width = max(map(len, description))
    for key, value in description.items():
        typer.echo(f"{key:{width}}  {value}")


@versions.command()
def use(version: Identity, unjudged: AlsoUnjudged = False, evidence: Evidence = EVIDENCE) -> None:
    """Switch to a version, after all digests are verified. A version that contains deleted data is refused."""
    from llm_forget.compliance.versions.versions import use as switch

    typer.echo(f"version {switch(evidence, version, unjudged=unjudged)} is in use")


@versions.command()
def rollback(
    version: Annotated[str | None, typer.Argument(metavar="[ID]", help="Default: the version in use before.")] = None,
    unjudged: AlsoUnjudged = False,
    evidence: Evidence = EVIDENCE,
) -> None:
    """Roll back to a version. A version that contains deleted data is refused; the error names the newest clean one."""
    from llm_forget.compliance.versions.versions import rollback as switch

    typer.echo(f"version {switch(evidence, version, unjudged=unjudged)} is in use")


@versions.command()
def diff(
    first: Annotated[str, typer.Argument(metavar="A", help="Id of a version.")],
    second: Annotated[str, typer.Argument(metavar="B", help="Id of another.")],
    evidence: Evidence = EVIDENCE,
) -> None:
    """Show the differences between two versions: model, data, settings and metrics."""
    from llm_forget.compliance.versions.diff import diff as compare

    differences = compare(evidence, first, second)
    rows = [[part, key, _value(a), _value(b)] for part, pairs in differences.items() for key, (a, b) in pairs.items()]
    if rows:
        _table(["", "", first, second], rows)
    else:
        typer.echo("only the files differ" if first != second else "a version does not differ from itself")


@versions.command()
def purge(
    version: Identity,
    yes: Annotated[bool, typer.Option("--yes", help="Remove the files; otherwise they are only listed.")] = False,
    evidence: Evidence = EVIDENCE,
) -> None:
    """Remove the weights of a version, but not its events. Refused if it is in use, or if another version needs it."""
    from llm_forget.compliance.versions.purge import plan_purge, purge as remove

    removal = plan_purge(evidence, version)
    for file, size in removal.files.items():
        typer.echo(f"{size / 1e6:10.2f} MB  {file}")
    if removal.remaining is not None:
        typer.echo(f"the run still has its own weights; delete them separately if needed: {removal.remaining}")
    for folder in removal.auxiliary:
        typer.echo(f"a model of the run's teacher learned the forget rows; delete it separately: {folder}")
    if not yes:
        typer.echo(f"nothing was removed; --yes removes these {len(removal.files)} files")
        return
    remove(evidence, version)
    typer.echo(f"removed the files of version {removal.version.id}")


def _method(evidence: Evidence, identity: str) -> str:
    from llm_forget.compliance.versions.diff import method_of
    from llm_forget.core.errors import EvidenceBroken

    try:
        return method_of(evidence, identity)
    except EvidenceBroken:
        return "[files are gone or damaged]"  # `versions use` reports details; the list must still show the others


def _verdicts(evidence: Evidence, identity: str) -> str:
    """Return the answers of all suites as text, such as ``demo: yes / yes``."""
    from llm_forget.compliance.versions.diff import verdicts

    return "; ".join(f"{suite}: {' / '.join(a.values())}" for suite, a in verdicts(evidence, identity).items()) or "-"


def _value(value: Any) -> str:
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _table(columns: list[str], rows: list[list[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(*columns, box=box.SIMPLE_HEAD)
    for row in rows:
        table.add_row(*map(escape, row))
    console = Console()
    (console if console.is_terminal else Console(width=160)).print(table)
