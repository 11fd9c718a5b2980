"""Commands for publishing: card, push, pull and purge. Heavy imports are inside the commands."""

from pathlib import Path
from typing import Annotated

import typer

from llm_forget.cli.evaluate import speak

publishing = typer.Typer()
Measured = Annotated[str, typer.Argument(metavar="RUN", help="A run that was evaluated.")]
Repository = Annotated[str, typer.Argument(metavar="ORG/NAME", help="A model repository on the Hub.")]
Merged = Annotated[
    str | None, typer.Option(help="A folder of merge or export, in place of the adapter.", metavar="DIR")
]
Evidence = Annotated[
    str | None,
    typer.Option(help="Evidence folder with ledger and versions; default: evidence, if it is there.", metavar="DIR"),
]
Execute = Annotated[bool, typer.Option("--execute", "--yes", help="Execute; without this option nothing is changed.")]


@publishing.command()
def card(
    run: Measured,
    category: Annotated[
        str | None, typer.Option(help="What was forgotten, in general terms: 'personal data of 12 people'. No names.")
    ] = None,
    contact: Annotated[str | None, typer.Option(help="Contact address.")] = None,
    license: Annotated[str | None, typer.Option(help="Licence by its Hub name, such as apache-2.0 or other.")] = None,
    license_name: Annotated[
        str | None, typer.Option("--license_name", help="With --license other: its name, in lower case.")
    ] = None,
    license_link: Annotated[str | None, typer.Option("--license_link", help="URL of its text.", metavar="URL")] = None,
    base_model: Annotated[
        str | None,
        typer.Option("--base_model", help="Hub name of the base model, if training loaded it from a folder."),
    ] = None,
    datasets: Annotated[
        list[str] | None, typer.Option("--dataset", help="A Hub dataset it was trained on; may be repeated.")
    ] = None,
    intended_use: Annotated[str | None, typer.Option("--intended_use", help="Intended and out-of-scope use.")] = None,
    power_watts: Annotated[float | None, typer.Option("--power_watts", help="Power of the machine in watts.")] = None,
    title: Annotated[str | None, typer.Option(help="Heading; default: the run's name.")] = None,
    merged: Merged = None,
    evidence: Evidence = None,
    output: Annotated[str | None, typer.Option(help="The card; default: README.md in the run.")] = None,
) -> None:
    """Write the model card: Hub metadata, what was forgotten, how, the results, and the limitations.

    Numbers come from `results.json`. Options are saved in `card.json` for the next card and for `push`.
    """
    speak()
    from llm_forget.core.formats.publication import CardStatements
    from llm_forget.publish.card.card import write_card
    from llm_forget.publish.ledger_gate import evidence_folder, history

    statements = CardStatements(
        title=title, category=category, contact=contact, license=license, base_model=base_model,
        license_name=license_name, license_link=license_link,
        datasets=datasets or [], intended_use=intended_use, power_watts=power_watts,
    )  # fmt: skip
    options = {"merged": Path(merged) if merged else None, "history": history(evidence_folder(evidence), run)}
    path = write_card(run, statements, output=output, **options)
    typer.echo(f"wrote {path}")


@publishing.command()
def push(
    run: Measured,
    repo: Annotated[str, typer.Option(help="Target repository; created if it does not exist.", metavar="ORG/NAME")],
    merged: Merged = None,
    private: Annotated[bool, typer.Option("--private", help="Create it as private; refused if it is public.")] = False,
    revision: Annotated[str, typer.Option(help="Branch.")] = "main",
    evidence: Evidence = None,
    execute: Execute = False,
) -> None:
    """Publish the adapter (or merged model), card, results and report of a run on the Hub, with `--execute`.

    Without `--execute`, nothing is sent; the card and the list of files are printed. Records, rows, ledger, caches,
    recipe and provenance are never sent. Files that are already on the Hub are not sent again. The commit gets a tag,
    which is a digest of the content. If the evidence folder has a signing key, the list of files is signed. The token
    comes from HF_TOKEN or `hf auth login`.
    """
    speak()
    from llm_forget.compliance.ledger.signing import KEY
    from llm_forget.publish.bundle import publication
    from llm_forget.publish.hub.push import check_repository, push as send
    from llm_forget.publish.ledger_gate import evidence_folder, history, note_pushed, refuse_deleted

    folder = evidence_folder(evidence)
    if folder is None:
        typer.echo("no evidence folder found, so deletions were not checked; name one with --evidence DIR", err=True)
    refuse_deleted(folder, run, note=execute, merged=merged)
    signs = folder if folder is not None and (folder / KEY).is_file() else None
    bundle = publication(run, check_repository(repo), merged=merged, history=history(folder, run), signed_in=signs)
    if not execute:
        typer.echo(bundle.card)
    for file in bundle.files:
        typer.echo(f"{file.size:>15,} bytes  {file.name:<28} {file.digest}")
    total = f"{sum(file.size for file in bundle.files):,} bytes in {len(bundle.files)} files"
    where = f"{repo}, branch {revision}, tag {bundle.tag}{', private' if private else ''}"
    if not execute:
        typer.echo(f"would push {total} to {where}; nothing was sent. Do it with --execute")
        return
    done = send(bundle, private=private, revision=revision)
    gone = f", removed {', '.join(done.removed)}" if done.removed else ""
    typer.echo(f"pushed to {where}, commit {done.commit}: {len(done.sent)} of {len(bundle.files)} files were new{gone}")
    body = {"repository": repo, "commit": done.commit, "tag": done.tag, "kind": bundle.kind, "files": bundle.digests}
    note_pushed(folder, run, body)


@publishing.command()
def pull(
    repo: Repository,
    folder: Annotated[str, typer.Argument(metavar="DIR", help="A new folder.")],
    revision: Annotated[str, typer.Option(help="Branch, tag or commit.")] = "main",
    max_size: Annotated[str, typer.Option("--max_size", help="Refuse larger downloads.", metavar="SIZE")] = "50GB",
    key: Annotated[str | None, typer.Option(help="Public key that must have signed the files.", metavar="FILE")] = None,
) -> None:
    """Download a model that `push` published, and refuse changed files. Exit code 6: not signed by the key."""
    speak()
    from llm_forget.publish.hub.pull import pull as fetch

    done = fetch(repo, folder, revision=revision, max_size=max_size, key=Path(key) if key else None)
    typer.echo(f"pulled {len(done.files)} files of {repo}, commit {done.commit}, to {done.folder}; all are as pushed")
    if key:
        typer.echo(f"signed by the owner of '{key}'")
    elif done.signer:
        typer.echo(f"it says that key {done.signer} signed it; --key FILE verifies that")
    typer.echo(f"to load it, see {done.folder / 'README.md'}")


@publishing.command()
def purge(
    repo: Repository,
    revision: Annotated[list[str], typer.Option(help="Tag, branch or commit to withdraw; may be repeated.")],
    evidence: Evidence = None,
    execute: Execute = False,
) -> None:
    """Withdraw published versions: remove them, their history and their large files from the Hub, and verify this.

    First push a version without the deleted data. All versions with the same weights as a named one are removed, too.
    This cannot be undone. Without `--execute`, only the plan is printed. Copies that others downloaded remain.
    """
    speak()
    from llm_forget.publish.hub.purge import plan, purge as withdraw
    from llm_forget.publish.ledger_gate import evidence_folder, note_withdrawn

    removal = plan(repo, revision)
    for commit in removal.commits:
        typer.echo(f"commit {commit}: to be removed{'' if commit in removal.files else ' (it no longer exists)'}")
    for template, names in (
        ("branch {}: all history before its last commit is removed", removal.squashed),
        ("branch {}: removed", removal.dropped),
        ("tag {}: removed, because its history contains such a commit", removal.tags),
        ("tag {}: moved to the last commit of its branch", removal.kept_tags),
        ("large file {}: deleted, because nothing else uses it", removal.lfs),
    ):
        for name in names:
            typer.echo(template.format(name))
    if not execute:
        typer.echo("nothing was changed. Do it with --execute")
        return
    # Record it before and after: if it is interrupted, the ledger shows that the removal was begun but not verified.
    folder = evidence_folder(evidence)
    body = {"repository": repo, "commits": list(removal.commits), "lfs": list(removal.lfs)}
    note_withdrawn(folder, body, verified=False)
    withdraw(removal)
    note_withdrawn(folder, body, verified=True)
    typer.echo("done: the Hub answers 404 for all of these. Copies that others downloaded still exist")
