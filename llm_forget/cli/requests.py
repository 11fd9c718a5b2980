"""Commands on deletion requests and their certificates. Heavy imports wait for a command's body."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from llm_forget.cli.evaluate import PASS_ON, speak
from llm_forget.cli.options import EVIDENCE, Evidence
from llm_forget.core import resources
from llm_forget.core.errors import ConfigError, MissingFileError

requests = typer.Typer()
request = typer.Typer(
    no_args_is_help=True, help="Deletion requests: receive, resolve to rows, run, close. Every step is in the ledger."
)


class IssueUnlessNamed(TyperGroup):
    """``certificate REQUEST`` is ``certificate issue REQUEST``."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        named = args[:1] and args[0] in self.commands
        return super().resolve_command(ctx, args if named else ["issue", *args])


certificate = typer.Typer(
    cls=IssueUnlessNamed,
    no_args_is_help=True,
    help="The signed certificate of a closed request: `llm-forget certificate REQUEST`, or verify one.",
)
requests.add_typer(request, name="request")
requests.add_typer(certificate, name="certificate")

RequestId = Annotated[str, typer.Argument(metavar="REQUEST", help="Such as req-0001.")]
IncludeNear = Annotated[
    str | None,
    typer.Option("--include_near", help="Near-duplicates to forget, too.", metavar="all|none|ID,..."),
]
AuthorisedBy = Annotated[
    str | None, typer.Option("--authorised_by", help="The role that stands behind it; no names.", metavar="ROLE")
]


@request.command()
def add(
    data: Annotated[str, typer.Option(help="What to search, as in a recipe: file, folder, Hub name or {path, ...}.")],
    subject: Annotated[str | None, typer.Option(help="All rows of this subject.")] = None,
    ids: Annotated[Path | None, typer.Option(help="Rows by id: one a line, or a JSON or YAML list of texts.")] = None,
    rows: Annotated[Path | None, typer.Option(help="Rows by what they say, as a data file.")] = None,
    subject_field: Annotated[
        str, typer.Option("--subject_field", help="Column with the subject of a row.")
    ] = "subject",
    category: Annotated[str, typer.Option(help="gdpr, copyright, safety or other.")] = "gdpr",
    due: Annotated[str | None, typer.Option(help="Default for gdpr: in a month.", metavar="YYYY-MM-DD")] = None,
    near: Annotated[
        float | None, typer.Option(help="Similarity that makes a near-duplicate: Jaccard of 5 characters; 0.7.")
    ] = None,
    include_near: IncludeNear = None,
    authorised_by: AuthorisedBy = None,
    force: Annotated[bool, typer.Option("--force", help="Although it exceeds a quota of limits.yaml.")] = False,
    evidence: Evidence = EVIDENCE,
) -> None:
    """Receive a request and resolve it to rows; nothing matched is an error.

    Taken are rows that match exactly, after normalising (composed letters, case, zero-width characters, white space),
    and rows that say the same. Near-duplicates are listed, and `--include_near` decides about them, here or in
    `request run`. The same request again is the same one; another `--due` or `--authorised_by` amends it.

    `limits.yaml` in the evidence folder says what no request does unasked: `protected` (sources of rows to keep),
    `max_share` and `max_rows` (of open requests), `authorised_by` (roles, one of which must stand behind a request).
    """
    if sum(given is not None for given in (subject, ids, rows)) != 1:
        raise ConfigError("a request is about one of --subject, --ids and --rows; give exactly one")
    from llm_forget.compliance.requests import describe as words
    from llm_forget.compliance.requests import intake, matching, steps
    from llm_forget.data.near_duplicates import NEAR
    from llm_forget.data.rows import content
    from llm_forget.data.sources import load_source

    listed = matching.read_ids(ids) if ids is not None else None
    said = [content(row) for row in load_source(str(rows), split_name="rows")] if rows is not None else None
    source = _source(data)
    match = matching.resolve(
        load_source(source, split_name="data"),
        subject=subject,
        ids=listed,
        said=said,
        field=subject_field,
        near=NEAR if near is None else near,
    )
    more: dict[str, Any] = {"category": category, "due": due, "authorised_by": authorised_by, "force": force}
    made, new = intake.add(evidence, source, match, **more)
    if include_near is not None:
        with intake.working_on(evidence, made.id) as (ledger, made):
            steps.decide(ledger, made, include_near)
    typer.echo(f"{made.id}{'' if new else ' was received already'}, {words.due(made)}: {words.resolved(made)}")
    for line in (*(words.near(made) if made.rows["taken"] is None else ()), *words.protected(evidence, made)):
        typer.echo(line)
    if due is not None and (steps.days_left(made) or 0) < 0:
        typer.echo(
            f"llm-forget: warning: --due {due} is in the past; the same command with another --due amends it", err=True
        )


@request.command("list")
def list_requests(evidence: Evidence = EVIDENCE) -> None:
    """All requests with their state and what is due."""
    from llm_forget.compliance.requests.describe import due
    from llm_forget.compliance.requests.files import listed

    found = listed(evidence)
    if not found:
        typer.echo(f"no requests in '{evidence}'")
    for one in found:
        typer.echo(
            f"{one.id}  {one.state:<12}  {one.content['category']:<9}  {one.content['counts']['rows']:>6,} rows  "
            f"{due(one)}"
        )


@request.command()
def show(request_id: RequestId, evidence: Evidence = EVIDENCE) -> None:
    """One request: what it resolved to, near-duplicates, attempts and history. Ids only, never texts."""
    from llm_forget.compliance.requests import describe as words
    from llm_forget.compliance.requests.files import find

    one = find(evidence, request_id)
    typer.echo(f"{one.id}: {one.state}, {one.content['category']}, {words.due(one)}")
    typer.echo(words.resolved(one))
    if not one.closed:
        for line in (*words.near(one), *words.protected(evidence, one)):
            typer.echo(line)
    if one.content["authorised_by"]:
        typer.echo(f"authorised by {one.content['authorised_by']}")
    for attempt in one.content["attempts"]:
        typer.echo(f"attempt: {attempt['output_dir']}{', executed' if attempt.get('executed') else ''}")
    for step in one.content["history"]:
        typer.echo(f"{step['time']}  {step['state']:<10}  event {step['seq']}")


@request.command(context_settings=PASS_ON, options_metavar="[OPTIONS] [--KEY VALUE]...")
def run(
    ctx: typer.Context,
    request_id: RequestId,
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="Of `unlearn`; its forget and retain are replaced.")],
    include_near: IncludeNear = None,
    authorised_by: AuthorisedBy = None,
    allow_protected: Annotated[
        str | None,
        typer.Option(
            "--allow_protected", help="Why rows that limits.yaml protects go, too; no names.", metavar="REASON"
        ),
    ] = None,
    suites: Annotated[
        str | None, typer.Option(help="Measure with these suites, several with commas; default: the recipe's.")
    ] = None,
    evidence: Evidence = EVIDENCE,
) -> None:
    """Unlearn the rows of a request by a recipe and measure the run; goes on where it was stopped.

    Lists of ids are written beside the request and read by the recipe as `forget` and `retain`. The run goes to the
    recipe's `output_dir` with the request's name behind it, unless `--output_dir` says another. With `--dry_run true`
    nothing is trained; it prints what that would take, and the two sources, which `llm-forget unlearn` takes, too, for
    several GPUs.
    """
    from llm_forget.compliance.requests import intake, limits, steps
    from llm_forget.compliance.requests.execute import execute, read_plan

    with intake.working_on(evidence, request_id) as (ledger, one):
        if one.closed:
            typer.echo(f"{one.id} is closed already: nothing to do")
            return
        resources.resolve("recipes", recipe)  # before anything heavy is imported
        speak()
        read_plan(one, recipe, list(ctx.args), suites)  # what is mistyped is said before anything is noted
        steps.decide(ledger, one, include_near)
        limit = limits.read(evidence)
        if authorised_by is not None:
            steps.amend(ledger, one, {"authorised_by": limits.role(limit, authorised_by)})
        if allow_protected is not None:
            steps.allow_protected(ledger, one, allow_protected)
        limits.refuse(limit, one)
        path = execute(ledger, one, recipe, list(ctx.args), suites, say=typer.echo)
    if path is not None:
        typer.echo(f"{one.id} is {one.state}; next: llm-forget request close {one.id} --run {path}")


@request.command()
def close(
    request_id: RequestId,
    run: Annotated[str, typer.Option(help="The measured run that forgot the rows, or was retrained without them.")],
    merged: Annotated[
        str | None,
        typer.Option(help="What `merge` wrote from it, measured: this is what is certified.", metavar="FOLDER"),
    ] = None,
    policy: Annotated[str, typer.Option(help="Name of a shipped policy or a file.")] = "default",
    accept_inconclusive: Annotated[
        str | None,
        typer.Option(
            "--accept_inconclusive", help="Close although the policy cannot tell; stands in the certificate: no names."
        ),
    ] = None,
    evidence: Evidence = EVIDENCE,
) -> None:
    """Close a request if the run passes a policy: exit code 0 closed, 1 failed, 3 inconclusive, 2 where it cannot be.

    Ids of rows are then removed from the evidence, but for keyed hashes in the ledger: measure and attack the run
    before.
    """
    from llm_forget.compliance.requests import close as closing
    from llm_forget.compliance.requests import intake, limits
    from llm_forget.compliance.requests.describe import due, still_held, still_public, unlinking
    from llm_forget.evals.policy import EXIT_CODES

    with intake.working_on(evidence, request_id) as (ledger, one):
        last = []
        if not (before := one.closed):
            limits.refuse(limits.read(evidence), one)
            last = unlinking(one)
        answer, found = closing.close(ledger, one, run, merged=merged, policy=policy, reason=accept_inconclusive)
        others = still_held(ledger, one) + still_public(ledger, one) if one.closed else []
    for ruling in found:
        typer.echo(ruling.sentence())
    if before and found:
        typer.echo(f"{one.id} was closed before; that '{merged}' gives {answer} is noted")
        raise typer.Exit(EXIT_CODES[answer])
    if one.closed:
        typer.echo(f"{one.id} is closed ({answer}, {due(one)}); next: llm-forget certificate {one.id}")
        for sentence in last:
            typer.echo(sentence)
        for sentence in others:
            typer.echo(sentence, err=True)
        return
    why = "run it by another recipe" if answer == "fail" else "measure what is missing, or give --accept_inconclusive"
    typer.echo(f"{one.id} stays open: the policy says {answer}; {why}. The certificate will name every policy tried")
    raise typer.Exit(EXIT_CODES[answer])


@certificate.command()
def issue(
    request_id: RequestId,
    output: Annotated[
        Path | None, typer.Option(help="The JSON file; the page lies beside it. Default: in the request's folder.")
    ] = None,
    evidence: Evidence = EVIDENCE,
) -> None:
    """Write the signed certificate of a closed request, and a page to print: `llm-forget certificate REQUEST`."""
    from llm_forget.compliance.certificates.certificate import issue as write
    from llm_forget.compliance.ledger.signing import PUBLIC, fingerprint

    path = write(evidence, request_id, output)
    typer.echo(f"wrote {path} and {path.with_suffix('.html')}")
    public = evidence / PUBLIC
    typer.echo(f"verify with: llm-forget certificate verify {path} --key {public}   (key {fingerprint(public)})")
    typer.echo("last, when nobody need ask for the rows again: llm-forget audit unlink SUBJECT")


@certificate.command()
def verify(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A certificate.")],
    key: Annotated[
        Path | None, typer.Option(help="signing.pub of the issuer, got from the issuer by another way.")
    ] = None,
    request_id: Annotated[str | None, typer.Option("--request", help="The request it must be about.")] = None,
    evidence: Annotated[Path | None, typer.Option(help="Compare with this ledger, too.", metavar="DIR")] = None,
) -> None:
    """Check a certificate with a public key, without anything else: exit code 0 valid, 6 refused.

    Without a key only the file's integrity can be told, not who signed: exit code 3.
    """
    from llm_forget.compliance.certificates.certificate import summary
    from llm_forget.compliance.certificates.certificate import verify as check

    if not file.is_file():
        raise MissingFileError(f"there is no certificate '{file}'; `llm-forget certificate REQUEST` writes one")
    body = check(file, key, request=request_id, evidence=evidence)
    if key is None:
        typer.echo("integrity only: it fits the key that it brings itself, so anybody may have made it; give --key")
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
        raise ConfigError("--data begins with { but is no mapping; write it as '{path: rows.jsonl, id_field: number}'")
    return source
