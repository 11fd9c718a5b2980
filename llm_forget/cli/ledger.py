"""Commands on the ledger. Heavy imports are inside the commands."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llm_forget.cli.options import EVIDENCE, Evidence
from llm_forget.core.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from llm_forget.compliance.ledger.chain import Event

audit = typer.Typer(
    no_args_is_help=True,
    help="The ledger: training, deletions and verifications of all models, in a tamper-evident chain.",
)


@audit.command()
def note(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Finished runs of finetune or unlearn.")],
    evidence: Evidence = EVIDENCE,
) -> None:
    """Record runs in the ledger: training rows, forgotten rows and evaluation results. Nothing is recorded twice.

    Row ids are recorded as keyed hashes. `versions add` and `request run` do this for their runs.
    """
    from llm_forget.compliance.ledger.ledger import Ledger
    from llm_forget.compliance.ledger.record_runs import note_run

    with Ledger.open(evidence, create=True) as ledger:
        for run in runs:
            before = ledger.head()[0]
            noted = note_run(ledger, run)
            new = [f"{event.kind} (event {event.seq})" for event in noted if event.seq > before]
            typer.echo(f"{run}: {', '.join(new) if new else 'nothing new'}")


@audit.command()
def show(
    kind: Annotated[str | None, typer.Option(help="Only events of this kind.")] = None,
    last: Annotated[int | None, typer.Option(min=1, help="Show only the newest N events.")] = None,
    evidence: Evidence = EVIDENCE,
) -> None:
    """List the events of the ledger, oldest first."""
    from llm_forget.compliance.ledger.ledger import KINDS, Ledger
    from llm_forget.core.registry import did_you_mean

    if kind is not None and kind not in KINDS:
        raise ConfigError(f"'{kind}' is not a kind of event; {did_you_mean(kind, KINDS)}")
    with Ledger.open(evidence) as ledger:
        events = ledger.events(*([kind] if kind else []))
    if not events:
        typer.echo(f"the ledger in '{evidence}' has no events{f' of kind {kind}' if kind else ''}")
        return
    _events("events", events if last is None else events[-last:])


@audit.command()
def record(
    record: Annotated[str, typer.Argument(metavar="ID", help="Id of a record.")],
    subject: Annotated[str | None, typer.Option(help="Its subject, if one was recorded.", metavar="ID")] = None,
    evidence: Evidence = EVIDENCE,
) -> None:
    """Show the events about a record, the runs and versions that were trained on it, and later events about these.

    Records whose key was destroyed (`audit unlink`) cannot be found.
    """
    from llm_forget.compliance.ledger.describe import short_digest
    from llm_forget.compliance.ledger.ledger import Ledger
    from llm_forget.compliance.versions.record_history import record_trail

    with Ledger.open(evidence) as ledger:
        trail = record_trail(ledger, record, subject)
    _events("about this record", trail.about)
    if trail.since:
        _events("done since with models that learned it", trail.since)
    rows = [
        [
            model.run,
            f"{', '.join(model.versions) or '-'}{' (purged)' if model.purged else ''}",
            short_digest(model.weights),
            _numbers(model.learned),
            _numbers(model.forgot) if model.forgot else "-",
            "unlearned it" if model.forgot else "yes",
        ]
        for model in trail.models
    ]
    if rows:
        _table("models that learned it", ["run", "version", "weights", "learned", "unlearned", "knows it"], rows)
    else:
        typer.echo("no model in the ledger was trained on this record")


@audit.command()
def version(
    version: Annotated[str, typer.Argument(metavar="VERSION", help="Id of a version, its prefix, or a run's name.")],
    hashes: Annotated[bool, typer.Option("--hashes", help="Print the keyed hash of every training record.")] = False,
    evidence: Evidence = EVIDENCE,
) -> None:
    """Show the training history of a version, the number of its records, and whether it contains deleted records."""
    from llm_forget.compliance.ledger.ledger import Ledger
    from llm_forget.compliance.versions.record_history import version_lineage
    from llm_forget.compliance.versions.versions import requests_of

    with Ledger.open(evidence) as ledger:
        lineage = version_lineage(ledger, version)
        learned, forgotten = (lineage.seqs(kind) for kind in ("training", "unlearning"))
        _events(f"what led to {', '.join(lineage.names)}", [step.event for step in reversed(lineage.steps)])
        typer.echo(f"weights   {lineage.weights}")
        for label, seqs in [("learned", learned), *([("unlearned", forgotten)] if forgotten else [])]:
            count = sum(1 for _ in ledger.record_hashes(seqs))
            typer.echo(f"{label:9} {count:,} {lineage.counted} (events {_numbers(seqs)})")
        if lineage.deletions:
            typer.echo(f"deletions holds records deleted by request {', '.join(requests_of(lineage.deletions))}")
        elif lineage.unjudged is not None:
            typer.echo(f"deletions {lineage.unjudged.sentence()}")
        else:
            typer.echo("deletions holds no record of a closed deletion")
        if hashes:
            for digits in ledger.record_hashes(learned):
                typer.echo(digits)


@audit.command()
def verify(
    anchor: Annotated[Path | None, typer.Option(help="A copy of the signed head; default: the folder's.")] = None,
    key: Annotated[Path | None, typer.Option(help="A copy of the public key; default: the one in the folder.")] = None,
    evidence: Evidence = EVIDENCE,
) -> None:
    """Verify the whole ledger. Exit code 0: intact; 6: changed, and the first changed event is printed.

    Only the signed head `anchor.json` reveals that the newest events were removed. Anyone who can change the ledger can
    also replace that file, so keep copies of it and of `signing.pub` elsewhere, and give them as options.
    """
    from llm_forget.compliance.ledger import signed_head
    from llm_forget.compliance.ledger.ledger import Ledger

    with Ledger.open(evidence) as ledger:
        seq, digest = ledger.verify(anchor, key)
        stated = signed_head.read(evidence, anchor, key)
    typer.echo(f"intact: {seq} events, head {digest}")
    if stated is None:
        typer.echo("no signed head: missing events at the end cannot be detected; see `llm-forget audit anchor`")
    else:
        typer.echo(f"the signed head is event {stated[0]}; missing events after it cannot be detected")


@audit.command()
def anchor(evidence: Evidence = EVIDENCE) -> None:
    """Verify the ledger, and write the signed number and digest of its newest event to `anchor.json`. Keep a copy.

    The first call creates `signing.key`, which must stay in the folder. Give `signing.pub` to all who verify.
    """
    from llm_forget.compliance.ledger.ledger import Ledger
    from llm_forget.compliance.ledger.signing import PUBLIC, fingerprint

    with Ledger.open(evidence) as ledger:
        path = ledger.anchor()
        seq, digest = ledger.head()
    typer.echo(f"wrote {path}: event {seq}, {digest}")
    typer.echo(f"signed by {fingerprint(evidence / PUBLIC)}; keep copies of {path.name} and {PUBLIC} elsewhere")


@audit.command()
def unlink(
    subjects: Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="Ids of subjects or records.")] = None,
    ids: Annotated[str | None, typer.Option(help="File with one id per line, or - for stdin.", metavar="FILE")] = None,
    evidence: Evidence = EVIDENCE,
) -> None:
    """Destroy the keys of subjects, so that no event can be linked to them any more. The ledger stays verifiable.

    A record without a subject has its own key. Do this only after the requests are closed, their certificates are
    issued, and the rows are removed from all data. Otherwise the next request would retain a row that is still in the
    data. Afterwards, `audit record` cannot find these records. Also destroy backups of `keys.db`: they have the keys.
    """
    from llm_forget.compliance.ledger.ledger import Ledger
    from llm_forget.compliance.requests.files import refuse_open_requests

    if bool(subjects) == (ids is not None):
        raise ConfigError("give subjects, or a file with --ids FILE")
    lines: Iterable[str] = subjects or []
    if ids is not None:
        file = sys.stdin if ids == "-" else open(ids, encoding="utf-8")  # noqa: SIM115 (read to its end below)
        lines = (line.rstrip("\r\n") for line in file if line.strip())
    names = list(lines)
    with Ledger.open(evidence) as ledger:
        refuse_open_requests(evidence, names)
        gone = ledger.destroy_keys(names)
        linked = ledger.count_linked(names)
    if not gone:
        raise ConfigError("none of these subjects has a key: they were never recorded, or were unlinked before")
    typer.echo(f"destroyed {gone:,} key{'' if gone == 1 else 's'}")
    if linked:
        typer.echo(f"{linked:,} of these have a subject that still links them; unlink the subject as well")


def _events(title: str, events: list[Event]) -> None:
    from llm_forget.compliance.ledger.describe import event_summary

    rows = [[str(e.seq), e.time.partition("+")[0].replace("T", " "), e.kind, event_summary(e)] for e in events]
    _table(title, ["event", "time (UTC)", "kind", "what"], rows)


def _table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    from rich.table import Table
    from rich.text import Text

    from llm_forget.core.text import plain, terminal

    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold", justify="right" if column == "event" else "left")
    for row in rows:
        table.add_row(*(Text(plain(cell)) for cell in row))  # no markup: names come from files
    terminal().print(table)


def _numbers(seqs: list[int]) -> str:
    return ", ".join(map(str, seqs)) or "none"
