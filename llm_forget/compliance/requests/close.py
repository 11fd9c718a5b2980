"""Close a deletion request with an evaluated run that unlearned (or never saw) its rows and passes a policy.

Closing writes the facts for the certificate to ``facts.json`` and adds the digest of that file to the ledger. After
that, the run may be evaluated again, moved or deleted.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm_forget.compliance.ledger.chain import Event
from llm_forget.compliance.ledger.ledger import Ledger
from llm_forget.compliance.ledger.record_runs import note_run
from llm_forget.compliance.requests import files, limits
from llm_forget.compliance.requests.certificate_facts import certificate_facts
from llm_forget.compliance.requests.closing_evidence import ClosingEvidence, apply_policy, closing_evidence
from llm_forget.compliance.requests.files import Request
from llm_forget.compliance.requests.row_checks import refuse_other_rows, refuse_other_subtracted_rows
from llm_forget.compliance.requests.steps import advance, decide, record_step
from llm_forget.compliance.versions.deletion_check import holds_any_record
from llm_forget.compliance.versions.lineage import training_history
from llm_forget.compliance.versions.snapshot import base_run
from llm_forget.core import formats
from llm_forget.core.digests import json_digest
from llm_forget.core.errors import EvidenceBroken, EvidenceError
from llm_forget.core.formats.certificate import CertificateFacts
from llm_forget.core.run_kinds import kind_of
from llm_forget.core.strict_json import canonical_digest
from llm_forget.core.text import model_name
from llm_forget.evals.policy import RuleResult, policy_name

FACTS = "facts.json"


def close(
    ledger: Ledger,
    request: Request,
    run: str | Path,
    *,
    merged: str | Path | None = None,
    policy: str | Path = "default",
    reason: str | None = None,
) -> tuple[str, list[RuleResult]]:
    """Apply a policy to a run and close the request if the run passes. Return the policy's answer and the rule results.

    Args:
        request: an open request, or one that this run closed.
        run: a run that unlearned the rows, was retrained without them, or learned them and is subtracted in ``merged``.
        merged: a folder that `merge` wrote from the run. It must be evaluated, and is certified in place of the run. If
            the run closed the request before, only the verification of the merged model is added to the ledger.
        policy: name of a shipped policy, or a file.
        reason: if given, the answer *inconclusive* also closes the request. The certificate contains this reason, so it
            must not name people.

    Raises:
        RunError: the run is incomplete or was not evaluated.
        EvidenceError: the run did not forget these rows, its results are of other weights, the folder was not merged
            from it, or the request was closed by another run.
        AdapterRefused: weights were changed since they were written.
    """
    evidence = closing_evidence(Path(run), merged)
    if (event := _find_closing(ledger, request)) is not None:
        return _close_again(ledger, request, event, evidence, policy)
    if reason is not None:
        reason = limits.one_line(reason, "--accept_inconclusive")
    _check_rows(ledger, request, evidence)
    exactness = _exactness(ledger, request, evidence)
    answer, rule_results, results = apply_policy(evidence, policy)
    note_run(ledger, evidence.run)
    if evidence.merged:
        note_run(ledger, evidence.merged.folder)
        _refuse_trained_sources(ledger, request, evidence)
    verification = _verification(evidence, policy, answer)
    advance(ledger, request, "verified", {**verification, "results": json_digest(results["suites"])})
    if answer == "fail" or (answer == "inconclusive" and reason is None):
        return answer, rule_results
    if answer == "inconclusive":
        _refuse_remembered(results)
    before = _model_before(ledger, request, evidence)
    facts = {
        **verification,
        "accepted_inconclusive": reason if answer == "inconclusive" else None,
        "exactness": exactness,
        "rules": [rule_result.to_dict() for rule_result in rule_results],
        **certificate_facts(evidence, results, token=request.content["token"], before=before),
    }
    formats.write(request.folder / FACTS, facts, CertificateFacts)
    body = {"request": request.id, **verification, "counts": request.content["counts"]}
    body["facts"] = canonical_digest(facts)
    _complete(request, ledger.append("closed", body, once=_once(request), records=request.pairs()))
    return answer, rule_results


def _close_again(
    ledger: Ledger, request: Request, event: Event, evidence: ClosingEvidence, policy: str | Path
) -> tuple[str, list[RuleResult]]:
    """Complete an earlier closing by the same run, or apply the policy to a model that was merged from that run.

    Return the policy's answer and the rule results, which are empty for the same run.
    """
    _complete(request, event)
    if evidence.weights == event.body["weights"]:
        return event.body["answer"], []
    if evidence.merged is None or evidence.run_weights != event.body["weights"]:
        raise EvidenceError(f"request {request.id} was closed by another run, '{event.body['run']}'")
    answer, rule_results, results = apply_policy(evidence, policy)
    note_run(ledger, evidence.merged.folder)
    body = {"request": request.id, "state": "verified", **_verification(evidence, policy, answer)}
    body["results"] = json_digest(results["suites"])
    ledger.append("request", body, once=canonical_digest(body))
    return answer, rule_results


def _check_rows(ledger: Ledger, request: Request, evidence: ClosingEvidence) -> None:
    """Check that a run forgot, or never learned, the rows of a request. Add the runs it was trained from to the ledger.

    Raise EvidenceError if the rows differ, or near-duplicates are listed without a decision.
    """
    if request.rows["taken"] is None:
        raise EvidenceError(
            f"request {request.id} lists near-duplicates without a decision; list them with `llm-forget request show`, "
            "and decide with `llm-forget request run --include_near all`, `none` or `ID,...`"
        )
    decide(ledger, request, None)  # adds the event of a decision if a process was killed before it did
    if evidence.subtracted:
        refuse_other_subtracted_rows(request, evidence.run)
    else:
        refuse_other_rows(ledger, request, evidence.run, evidence.run_weights)
    for base in _base_runs(evidence.run.path):
        note_run(ledger, base)


def _refuse_remembered(results: Mapping[str, Any]) -> None:
    """Raise EvidenceError if a suite answers ``forgot: no``. The ``reason`` of `close` cannot override this."""
    verdicts = {name: suite["verdict"].get("forgot", {}) for name, suite in results["suites"].items()}
    failed = [name for name, verdict in verdicts.items() if verdict.get("answer") == "no"]
    if failed:
        raise EvidenceError(
            f"suite {', '.join(failed)} says 'forgot: no' of this run, so an inconclusive policy is not accepted; run "
            "the request with another recipe"
        )


def _verification(evidence: ClosingEvidence, policy: str | Path, answer: str) -> dict[str, str]:
    return {"run": evidence.name, "weights": evidence.weights, "policy": policy_name(policy), "answer": answer}


def read_facts(request: Request, closed: Event) -> dict[str, Any]:
    """Return the content of facts.json. Raise EvidenceBroken if it is missing, or was changed after the closing."""
    path = request.folder / FACTS
    advice = "restore it from a copy"
    if path.is_file():
        facts: dict[str, Any] = formats.read_content(path, CertificateFacts, advice=advice, error=EvidenceBroken)
        if canonical_digest(facts) == closed.body["facts"]:
            return facts
    raise EvidenceBroken(f"'{path}' is not the file that request {request.id} was closed with; {advice}")


def _once(request: Request) -> str:
    return canonical_digest({"closed": request.id, "token": request.content["token"]})


def _find_closing(ledger: Ledger, request: Request) -> Event | None:
    """Return the event that closed a request, or None if the ledger has no such event."""
    return next((event for event in ledger.events("closed") if event.body.get("once") == _once(request)), None)


def _complete(request: Request, event: Event) -> None:
    """Finish a closing after its event was added: record the event in request.json, and delete the lists of rows."""
    read_facts(request, event)
    if not request.closed:
        record_step(request, "closed", event, canonical_digest(event.body))
    files.remove_row_lists(request)


def finish_closing(ledger: Ledger, request: Request) -> None:
    """Finish the closing of one request if the process was interrupted after the event was added."""
    if request.closed:
        files.remove_row_lists(request)
    elif (event := _find_closing(ledger, request)) is not None:
        _complete(request, event)


def finish_all_closings(ledger: Ledger) -> None:
    """Finish the interrupted closings of all requests."""
    for request in files.list_requests(ledger.folder):
        if not request.closed and _find_closing(ledger, request) is not None:
            with files.locked(request.folder / ".lock"):
                finish_closing(ledger, files.read_request(request.folder))


def closing_event(ledger: Ledger, request: Request) -> Event:
    """Return the event that closed a request. Raise EvidenceError if the request is not closed."""
    event = _find_closing(ledger, request)
    if event is None or not request.closed:
        raise EvidenceError(
            f"request {request.id} is {request.state}, not closed; first run `llm-forget request close {request.id} "
            "--run RUN`"
        )
    return event


def _base_runs(run: Path) -> list[Path]:
    """Return up to 8 runs that a run was trained from, oldest first. The ledger needs their training rows."""
    base_runs: list[Path] = []
    while (folder := base_run(run)) is not None and len(base_runs) < 8:
        run = folder
        base_runs.insert(0, run)
    return base_runs


def _row_events(request: Request) -> list[int]:
    """Return the numbers of the ledger events that hold the rows of a request."""
    return [step["seq"] for step in request.content["history"] if step["state"] in ("resolved", "decided")]


def _exactness(ledger: Ledger, request: Request, evidence: ClosingEvidence) -> dict[str, str]:
    """Return ``class`` and ``why``: the class of the deletion and its description (see `CLASSES`)."""
    if kind_of(evidence.run).forgotten or evidence.subtracted:
        is_adapter = evidence.measured_run.adapter.is_dir()  # a merged adapter can no longer be removed
        name = "suppressed" if is_adapter else "approximate"
    else:
        _refuse_inexact(ledger, request, evidence)
        name = "exact"
    return {"class": name, "why": files.CLASSES[name]}


def _refuse_inexact(ledger: Ledger, request: Request, evidence: ClosingEvidence) -> None:
    """Raise EvidenceError if a retrained model, or a model that it was trained from, learned or unlearned the rows."""
    note_run(ledger, evidence.run)
    if evidence.merged:
        note_run(ledger, evidence.merged.folder)
    seqs, path = _row_events(request), evidence.run.path
    advice = "retrain from a model that never saw them, or unlearn"
    events = [step.event for step in training_history(ledger, evidence.weights)]
    for kind, clause in (("training", "training that saw"), ("unlearning", "a model that had to unlearn")):
        if records := ledger.common_records(seqs, [event.seq for event in events if event.kind == kind]):
            raise EvidenceError(f"run '{path}' builds on {clause} {len(records)} of the requested rows; {advice}")
    if holds_any_record(ledger, evidence.weights, seqs):
        raise EvidenceError(
            f"run '{path}' builds on a model from which some of the requested rows were unlearned, so it must have "
            f"known them; {advice}"
        )


def _refuse_trained_sources(ledger: Ledger, request: Request, evidence: ClosingEvidence) -> None:
    """Raise EvidenceError if the certified merge adds (scale above 0) a run that was trained on the rows."""
    assert evidence.merged is not None
    for source in evidence.merged.facts["sources"]:
        training = [e.seq for e in ledger.events("training") if e.body["weights"] == source["weights"]]
        if source["scale"] > 0 and (records := ledger.common_records(_row_events(request), training)):
            raise EvidenceError(
                f"'{evidence.merged.folder}' was also merged from run '{source['run']}', which was trained on "
                f"{len(records)} of the requested rows; merge without it"
            )


def _model_before(ledger: Ledger, request: Request, evidence: ClosingEvidence) -> dict[str, Any] | None:
    """Return name and digest of the model that knew the rows, or None if the ledger has no such model.

    For a run that forgot the rows, this is its base. For a retrained run, it is the newest model trained on the rows,
    except models that were trained for a teacher only.
    """
    if kind_of(evidence.run).forgotten or evidence.subtracted:
        base = evidence.run.provenance["base"]
        return {"name": model_name(str(base["name"])), "digest": base["digest"]}
    auxiliary = _auxiliary_weights(ledger)
    for event in reversed(ledger.events("training")):
        if event.body["weights"] not in auxiliary and ledger.common_records(_row_events(request), [event.seq]):
            return {"name": event.body["run"], "digest": event.body["weights"]}
    return None


def _auxiliary_weights(ledger: Ledger) -> set[str]:
    """Return the digests of models that teachers of recorded runs used, except those that another run started from."""
    events = [event for kind in ("training", "unlearning") for event in ledger.events(kind)]
    weights = {digest for event in events for digest in event.body.get("auxiliary", {}).values()}
    return weights - {event.body["base"]["digest"] for event in events}
