"""Commands for deletion requests and their certificates. Heavy imports are inside the commands."""

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from llm_forget.cli.evaluate import speak
from llm_forget.cli.options import EVIDENCE, PASS_ON, Evidence
from llm_forget.core import resources
from llm_forget.core.errors import ConfigError, MissingFileError

requests = typer.Typer()
request = typer.Typer(no_args_is_help=True, help="Deletion requests: add, run, close. The ledger records each step.")


class IssueUnlessNamed(TyperGroup):
    """A command group that runs ``certificate REQUEST`` as ``certificate issue REQUEST``."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        is_command = args[:1] and args[0] in self.commands
        return super().resolve_command(ctx, args if is_command else ["issue", *args])


certificate = typer.Typer(
    cls=IssueUnlessNamed,
    no_args_is_help=True,
    help="Issue the signed certificate of a closed request (`llm-forget certificate REQUEST`), or verify one.",
)
requests.add_typer(request, name="request")
requests.add_typer(certificate, name="certificate")

RequestId = Annotated[str, typer.Argument(metavar="REQUEST", help="Such as req-0001.")]
IncludeNear = Annotated[
    str | None, typer.Option("--include_near", help="Near-duplicates to forget as well.", metavar="all|none|ID,...")
]
AuthorisedBy = Annotated[
    str | None, typer.Option("--authorised_by", help="The role that authorised the request; no names.", metavar="ROLE")
]


@request.command()
def add(
    data: Annotated[str, typer.Option(help="Data to search, as in a recipe: file, folder, Hub name or {path, ...}.")],
    subject: Annotated[str | None, typer.Option(help="Forget all rows of this subject.")] = None,
    ids: Annotated[Path | None, typer.Option(help="File of row ids: one per line, or a JSON or YAML list.")] = None,
    rows: Annotated[Path | None, typer.Option(help="Data file of rows to match by content.")] = None,
    subject_field: Annotated[str, typer.Option("--subject_field", help="Column with the row's subject.")] = "subject",
    category: Annotated[str, typer.Option(help="gdpr, copyright, safety or other.")] = "gdpr",
    due: Annotated[str | None, typer.Option(help="Due date; gdpr default: in one month.", metavar="YYYY-MM-DD")] = None,
    near: Annotated[
        float | None,
        typer.Option(help="Near-duplicate threshold: Jaccard similarity of 5-character shingles; default 0.7."),
    ] = None,
    include_near: IncludeNear = None,
    authorised_by: AuthorisedBy = None,
    force: Annotated[bool, typer.Option("--force", help="Accept a request above a quota of limits.yaml.")] = False,
    evidence: Evidence = EVIDENCE,
) -> None:
    """Add a deletion request, and find its rows in the data. It is an error if no row matches.

    Selects rows that match exactly or after normalisation (Unicode composition, case, zero-width characters, white
    space), and rows with the same text. Near-duplicates are listed; `--include_near` decides about them, here or in
    `request run`. If the same request is added again, only `--due` and `--authorised_by` are updated.

    `limits.yaml` in the evidence folder restricts requests: `protected` (sources of rows to keep), `max_share` and
    `max_rows` (of all open requests), `authorised_by` (roles, one of which must authorise each request).
    """
    if sum(option is not None for option in (subject, ids, rows)) != 1:
        raise ConfigError("give exactly one of --subject, --ids and --rows")
    from llm_forget.compliance.requests import describe as words, intake, matching, steps
    from llm_forget.data.near_duplicates import NEAR
    from llm_forget.data.rows import content
    from llm_forget.data.sources import load_source

    listed = matching.read_ids(ids) if ids is not None else None
    contents = [content(row) for row in load_source(str(rows), split_name="rows")] if rows is not None else None
    source = _source(data)
    match = matching.resolve(
        load_source(source, split_name="data"), subject=subject, ids=listed, contents=contents, field=subject_field,
        near=NEAR if near is None else near,
    )  # fmt: skip
    options: dict[str, Any] = {"category": category, "due": due, "authorised_by": authorised_by, "force": force}
    deletion, new = intake.add(evidence, source, match, **options)
    if include_near is not None:
        with intake.locked_request(evidence, deletion.id) as (ledger, deletion):
            steps.decide(ledger, deletion, include_near)
    typer.echo(f"{deletion.id}{'' if new else ' exists already'}, {words.due(deletion)}: {words.resolved(deletion)}")
    for line in (
        *(words.near(deletion) if deletion.rows["taken"] is None else ()),
        *words.protected(evidence, deletion),
    ):
        typer.echo(line)
    if due is not None and (steps.days_left(deletion) or 0) < 0:
        typer.echo(f"llm-forget: warning: --due {due} is in the past; run it with another --due to amend it", err=True)


@request.command("list")
def list_requests(evidence: Evidence = EVIDENCE) -> None:
    """List all requests with their state and due date."""
    from llm_forget.compliance.requests.describe import due
    from llm_forget.compliance.requests.files import list_requests as all_requests

    deletions = all_requests(evidence)
    if not deletions:
        typer.echo(f"no requests in '{evidence}'")
    for deletion in deletions:
        typer.echo(
            f"{deletion.id}  {deletion.state:<12}  {deletion.content['category']:<9}  "
            f"{deletion.content['counts']['rows']:>6,} rows  {due(deletion)}"
        )


@request.command()
def show(request_id: RequestId, evidence: Evidence = EVIDENCE) -> None:
    """Show one request: matched rows, near-duplicates, attempts and history. Prints row ids, but never text."""
    from llm_forget.compliance.requests import describe as words
    from llm_forget.compliance.requests.files import find_request

    deletion = find_request(evidence, request_id)
    typer.echo(f"{deletion.id}: {deletion.state}, {deletion.content['category']}, {words.due(deletion)}")
    typer.echo(words.resolved(deletion))
    if not deletion.closed:
        for line in (*words.near(deletion), *words.protected(evidence, deletion)):
            typer.echo(line)
    if deletion.content["authorised_by"]:
        typer.echo(f"authorised by {deletion.content['authorised_by']}")
    for attempt in deletion.content["attempts"]:
        typer.echo(f"attempt: {attempt['output_dir']}{', executed' if attempt.get('executed') else ''}")
    for step in deletion.content["history"]:
        typer.echo(f"{step['time']}  {step['state']:<10}  event {step['seq']}")


@request.command(context_settings=PASS_ON, options_metavar="[OPTIONS] [--KEY VALUE]...")
def run(
    ctx: typer.Context,
    request_id: RequestId,
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="Recipe of `unlearn`; its rows are replaced.")],
    include_near: IncludeNear = None,
    authorised_by: AuthorisedBy = None,
    allow_protected: Annotated[
        str | None,
        typer.Option("--allow_protected", help="Reason to forget protected rows; no names.", metavar="REASON"),
    ] = None,
    suites: Annotated[str | None, typer.Option(help="Comma-separated suites; default: the recipe's.")] = None,
    evidence: Evidence = EVIDENCE,
) -> None:
    """Unlearn the rows of a request with a recipe, and evaluate the run. An interrupted run is resumed.

    Lists of row ids are written into the request's folder, and replace `forget` and `retain` of the recipe. The run
    directory is `--output_dir`, or the recipe's `output_dir` plus the id of the request. `--dry_run true` only prints
    the cost and both sources. To train on several GPUs, give these sources to `llm-forget unlearn`.
    """
    from llm_forget.compliance.requests import intake, limits, steps
    from llm_forget.compliance.requests.execute import execute, read_plan

    with intake.locked_request(evidence, request_id) as (ledger, deletion):
        if deletion.closed:
            typer.echo(f"{deletion.id} is already closed: nothing to do")
            return
        resources.resolve("recipes", recipe)  # before anything heavy is imported
        speak()
        read_plan(deletion, recipe, list(ctx.args), suites)  # reports typing errors before anything is recorded
        steps.decide(ledger, deletion, include_near)
        limit = limits.read(evidence)
        if authorised_by is not None:
            steps.amend(ledger, deletion, {"authorised_by": limits.check_role(limit, authorised_by)})
        if allow_protected is not None:
            steps.allow_protected(ledger, deletion, allow_protected)
        limits.enforce(limit, deletion)
        path = execute(ledger, deletion, recipe, list(ctx.args), suites, say=typer.echo)
    if path is not None:
        typer.echo(f"{deletion.id} is {deletion.state}; next: llm-forget request close {deletion.id} --run {path}")


@request.command()
def close(
    request_id: RequestId,
    run: Annotated[str, typer.Option(help="The evaluated run that unlearned the rows, or was retrained without them.")],
    merged: Annotated[
        str | None,
        typer.Option(
            help="The evaluated folder that `merge` wrote from the run; it is certified in place of the run.",
            metavar="FOLDER",
        ),
    ] = None,
    policy: Annotated[str, typer.Option(help="Name of a shipped policy or a file.")] = "default",
    accept_inconclusive: Annotated[
        str | None,
        typer.Option(
            "--accept_inconclusive",
            help="Reason to close although the policy is inconclusive; printed in the certificate: no names.",
        ),
    ] = None,
    evidence: Evidence = EVIDENCE,
) -> None:
    """Close a request if the run passes a policy. Exit code 0 closed, 1 failed, 3 inconclusive, 2 usage error.

    Evaluate and attack the run first, because closing removes all row ids except keyed hashes in the ledger.
    """
    from llm_forget.compliance.requests import close as closing, intake, limits
    from llm_forget.compliance.requests.describe import (
        due,
        other_deleted_rows,
        published_copies,
        teacher_remains,
        unlink_command,
    )  # fmt: skip
    from llm_forget.evals.policy import EXIT_CODES

    with intake.locked_request(evidence, request_id) as (ledger, deletion):
        unlink_lines = []
        if not (before := deletion.closed):
            limits.enforce(limits.read(evidence), deletion)
            unlink_lines = unlink_command(deletion)
        answer, rulings = closing.close(ledger, deletion, run, merged=merged, policy=policy, reason=accept_inconclusive)
        others = other_deleted_rows(ledger, deletion) + published_copies(ledger, deletion) if deletion.closed else []
        others += teacher_remains(Path(run)) if deletion.closed else []
    for ruling in rulings:
        typer.echo(ruling.sentence())
    if before and rulings:
        typer.echo(f"{deletion.id} was closed before; recorded the answer for '{merged}': {answer}")
        raise typer.Exit(EXIT_CODES[answer])
    if deletion.closed:
        typer.echo(f"{deletion.id} is closed ({answer}, {due(deletion)}); next: llm-forget certificate {deletion.id}")
        for sentence in unlink_lines:
            typer.echo(sentence)
        for sentence in others:
            typer.echo(sentence, err=True)
        return
    advice = "run another recipe" if answer == "fail" else "measure what is missing, or give --accept_inconclusive"
    typer.echo(f"{deletion.id} stays open: the policy says {answer}; {advice}. The certificate names each policy tried")
    raise typer.Exit(EXIT_CODES[answer])


@certificate.command()
def issue(
    request_id: RequestId,
    output: Annotated[
        Path | None,
        typer.Option(help="The JSON file; the HTML page is written beside it. Default: in the request's folder."),
    ] = None,
    evidence: Evidence = EVIDENCE,
) -> None:
    """Write the signed certificate of a closed request and a printable page: `llm-forget certificate REQUEST`."""
    from llm_forget.compliance.certificates.certificate import issue as write
    from llm_forget.compliance.ledger.signing import PUBLIC, fingerprint

    path = write(evidence, request_id, output)
    typer.echo(f"wrote {path} and {path.with_suffix('.html')}")
    public = evidence / PUBLIC
    typer.echo(f"verify with: llm-forget certificate verify {path} --key {public}   (key {fingerprint(public)})")
    typer.echo("finally, once the rows need not be looked up any more: llm-forget audit unlink SUBJECT")


@certificate.command()
def verify(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A certificate.")],
    key: Annotated[Path | None, typer.Option(help="signing.pub of the issuer, from another channel.")] = None,
    request_id: Annotated[str | None, typer.Option("--request", help="The request it must be about.")] = None,
    evidence: Annotated[Path | None, typer.Option(help="Also compare with this ledger.", metavar="DIR")] = None,
) -> None:
    """Verify a certificate with the public key of its issuer. Exit code 0 valid, 6 refused.

    No other file is needed. Without `--key`, exit code 3: only the integrity of the file is verified, not the signer.
    """
    from llm_forget.compliance.certificates.certificate import summary, verify as check

    if not file.is_file():
        raise MissingFileError(f"there is no certificate '{file}'; `llm-forget certificate REQUEST` writes one")
    body = check(file, key, request=request_id, evidence=evidence)
    if key is None:
        typer.echo("integrity only: it matches the key inside the file, so anyone may have issued it; give --key")
    else:
        typer.echo("valid: signed by the owner of this key, unchanged")
    for line in summary(body):
        typer.echo(line)
    if key is None:
        raise typer.Exit(3)


def _source(text: str) -> Any:
    if not text.startswith("{"):
        return text
    import yaml

    try:
        source = yaml.safe_load(text)
    except yaml.YAMLError:
        source = None
    if not isinstance(source, dict):
        raise ConfigError("--data begins with { but is not a mapping; write '{path: rows.jsonl, id_field: number}'")
    return source
