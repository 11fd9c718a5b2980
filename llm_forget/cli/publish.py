"""Commands that publish: the model card, to the Hub and back. Heavy imports wait for a command's body."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llm_forget.cli.evaluate import speak

publishing = typer.Typer()
Measured = Annotated[str, typer.Argument(metavar="RUN", help="A run that was evaluated.")]
Repository = Annotated[str, typer.Argument(metavar="ORG/NAME", help="A model repository on the Hub.")]
Merged = Annotated[
    str | None, typer.Option(help="A folder that merge or export wrote, in place of the adapter.", metavar="DIR")
]
Evidence = Annotated[
    str | None,
    typer.Option(help="Evidence folder with ledger and versions; default: evidence, if it is there.", metavar="DIR"),
]
Execute = Annotated[bool, typer.Option("--execute", "--yes", help="Do it; without this only say what would be done.")]


@publishing.command()
def card(
    run: Measured,
    category: Annotated[
        str | None, typer.Option(help="What was to be forgotten, as a kind: 'personal data of 12 people'. No names.")
    ] = None,
    contact: Annotated[str | None, typer.Option(help="Whom to write to.")] = None,
    license: Annotated[str | None, typer.Option(help="Of the model, as the Hub calls it: apache-2.0; other.")] = None,
    license_name: Annotated[
        str | None, typer.Option("--license_name", help="With --license other: its name, in small letters.")
    ] = None,
    license_link: Annotated[
        str | None, typer.Option("--license_link", help="With --license other: where it can be read.", metavar="URL")
    ] = None,
    base_model: Annotated[
        str | None, typer.Option("--base_model", help="The base on the Hub, where training took it from a folder.")
    ] = None,
    datasets: Annotated[
        list[str] | None, typer.Option("--dataset", help="A data set of the Hub it was trained on; may be repeated.")
    ] = None,
    intended_use: Annotated[str | None, typer.Option("--intended_use", help="What it is for, and not for.")] = None,
    power_watts: Annotated[
        float | None, typer.Option("--power_watts", help="What the machine draws, for the estimate of energy.")
    ] = None,
    title: Annotated[str | None, typer.Option(help="Heading; default: the run's name.")] = None,
    merged: Merged = None,
    evidence: Evidence = None,
    output: Annotated[str | None, typer.Option(help="The card; default: README.md in the run.")] = None,
) -> None:
    """Write the model card: metadata for the Hub, and what was to be forgotten, how, what came out, and its limits.

    Numbers come from `results.json`. What the options say is kept in `card.json`, for the next card and for `push`.
    """
    speak()
    from llm_forget.publish.card.card import write_card
    from llm_forget.publish.card.statements import Statements
    from llm_forget.publish.ledger_gate import evidence_folder, history

    said = Statements(
        title=title, category=category, contact=contact, license=license, base_model=base_model,
        license_name=license_name, license_link=license_link,
        datasets=tuple(datasets or ()), intended_use=intended_use, power_watts=power_watts,
    )  # fmt: skip
    path = write_card(
        run,
        said,
        output=output,
        merged=Path(merged) if merged else None,
        history=history(evidence_folder(evidence), run),
    )
    typer.echo(f"wrote {path}")


@publishing.command()
def push(
    run: Measured,
    repo: Annotated[str, typer.Option(help="Where to; made if there is none.", metavar="ORG/NAME")],
    merged: Merged = None,
    private: Annotated[bool, typer.Option("--private", help="Make it private; refused where it is public.")] = False,
    revision: Annotated[str, typer.Option(help="Branch.")] = "main",
    evidence: Evidence = None,
    execute: Execute = False,
) -> None:
    """Publish adapter (or merged model), card, results and report. Without --execute nothing is sent.

    Without it, shows the card and every file; with it, the files only. Never sends records, rows, ledger, caches,
    recipe or provenance. The version is tagged by its content; pushed again, nothing is sent twice. Where the evidence
    folder has a signing key, the list of files is signed by it. The token is that of HF_TOKEN or of `hf auth login`.
    """
    speak()
    from llm_forget.compliance.ledger.signing import KEY
    from llm_forget.publish.bundle import publication
    from llm_forget.publish.hub.push import check_repository
    from llm_forget.publish.hub.push import push as send
    from llm_forget.publish.ledger_gate import evidence_folder, history, note_pushed, refuse_deleted

    folder = evidence_folder(evidence)
    if folder is None:
        typer.echo("no evidence folder here: not compared with deletions; name one with --evidence DIR", err=True)
    refuse_deleted(folder, run, note=execute, merged=merged)
    signs = folder if folder is not None and (folder / KEY).is_file() else None
    what = publication(run, check_repository(repo), merged=merged, history=history(folder, run), signed_in=signs)
    if not execute:
        typer.echo(what.card)
    for file in what.files:
        typer.echo(f"{file.size:>15,} bytes  {file.name:<28} {file.digest}")
    total = f"{sum(file.size for file in what.files):,} bytes in {len(what.files)} files"
    where = f"{repo}, branch {revision}, tag {what.tag}{', private' if private else ''}"
    if not execute:
        typer.echo(f"would push {total} to {where}; nothing was sent. Do it with --execute")
        return
    done = send(what, private=private, revision=revision)
    gone = f", removed {', '.join(done.removed)}" if done.removed else ""
    typer.echo(f"pushed to {where}, commit {done.commit}: {len(done.sent)} of {len(what.files)} files were new{gone}")
    body = {"repository": repo, "commit": done.commit, "tag": done.tag, "kind": what.kind, "files": what.digests}
    note_pushed(folder, run, body)


@publishing.command()
def pull(
    repo: Repository,
    folder: Annotated[str, typer.Argument(metavar="DIR", help="A new folder.")],
    revision: Annotated[str, typer.Option(help="Branch, tag or commit.")] = "main",
    max_size: Annotated[
        str, typer.Option("--max_size", help="Refuse more than this, before any file is fetched.", metavar="SIZE")
    ] = "50GB",
    key: Annotated[
        str | None, typer.Option(help="Public key of who must have signed it: their signing.pub.", metavar="FILE")
    ] = None,
) -> None:
    """Fetch what push published, and keep it only if every file is what was pushed. Exit code 6: not signed by it."""
    speak()
    from llm_forget.publish.hub.pull import pull as fetch

    done = fetch(repo, folder, revision=revision, max_size=max_size, key=Path(key) if key else None)
    typer.echo(f"pulled {len(done.files)} files of {repo}, commit {done.commit}, to {done.folder}; all are as pushed")
    if key:
        typer.echo(f"signed by the owner of '{key}'")
    elif done.signer:
        typer.echo(f"it says that key {done.signer} signed it; --key FILE verifies that")
    typer.echo(f"how to load it stands in {done.folder / 'README.md'}")


@publishing.command()
def purge(
    repo: Repository,
    revision: Annotated[list[str], typer.Option(help="Tag, branch or commit that holds erased data; may be repeated.")],
    evidence: Evidence = None,
    execute: Execute = False,
) -> None:
    """Take versions that hold erased data off the Hub, history and large files with them, and check that they are gone.

    Push a version without the data first; all versions with the same weights go. Cannot be undone; without --execute
    only says what would be done. What others have downloaded is not reached.
    """
    speak()
    from llm_forget.publish.hub.purge import plan
    from llm_forget.publish.hub.purge import purge as withdraw
    from llm_forget.publish.ledger_gate import evidence_folder, note_withdrawn

    what = plan(repo, revision)
    for commit in what.commits:
        typer.echo(f"commit {commit}: to be gone{'' if commit in what.files else '; it is not there any more'}")
    for said, names in (
        ("branch {}: all history before its last commit goes", what.squashed),
        ("branch {}: goes", what.dropped),
        ("tag {}: goes, as its history holds such a commit", what.tags),
        ("tag {}: set anew on the last commit of its branch", what.kept_tags),
        ("large file {}: deleted, as nothing that remains has it", what.lfs),
    ):
        for name in names:
            typer.echo(said.format(name))
    if not execute:
        typer.echo("nothing was changed. Do it with --execute")
        return
    # Said before and after: cut off in between, the ledger says what was begun, and nobody believes that it was done.
    folder = evidence_folder(evidence)
    body = {"repository": repo, "commits": list(what.commits), "lfs": list(what.lfs)}
    note_withdrawn(folder, body, verified=False)
    withdraw(what)
    note_withdrawn(folder, body, verified=True)
    typer.echo("done: the Hub answers 404 for all of these. Copies that others have made are not reached")
