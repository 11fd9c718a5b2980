"""Closing a deletion request: the run must be about its rows, be measured as it is, and pass a policy.

With a model that was merged from the run, that one is measured, passes and is certified: its weights are given away.

What the certificate will say is taken from the run now and kept as ``facts.json``, whose digest is in the ledger: the
run may be measured anew, moved or deleted later.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm_forget.compliance.ledger.chain import Event
from llm_forget.compliance.ledger.ledger import Ledger
from llm_forget.compliance.ledger.record_runs import note_run
from llm_forget.compliance.requests.certificate_facts import facts_of
from llm_forget.compliance.requests.closing_evidence import Closer, closer_of, verified
from llm_forget.compliance.requests.files import CLASSES, Request, forget_rows, listed, locked, read
from llm_forget.compliance.requests.row_checks import refuse_other_rows, refuse_others_taken_away
from llm_forget.compliance.requests.steps import advance, decide, note_step
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
LONGEST_REASON = 500


def close(
    ledger: Ledger,
    request: Request,
    run: str | Path,
    *,
    merged: str | Path | None = None,
    policy: str | Path = "default",
    reason: str | None = None,
) -> tuple[str, list[RuleResult]]:
    """Apply a policy to a run and close the request where it passes, or is inconclusive and that is accepted.

    Args:
        ledger: of the request's evidence.
        request: not closed, or closed by this run.
        run: what forgot the rows: an unlearning run, or one retrained without them; or one that learned them and was
            taken away in ``merged``.
        merged: a folder that `merge` wrote from the run: it is what is measured and certified. Of a request that the
            run itself closed, its verification is noted.
        policy: name of a shipped policy, or a file.
        reason: why an inconclusive answer is accepted; it is signed and published: no names.

    Returns:
        The policy's answer, and what became of each rule. The request's state says whether it is closed.

    Raises:
        ValueError: a run that did not forget these rows, was not measured, or is not as it was measured; a folder that
            was not merged from it; or the request is closed by another run.
        AdapterRefused: a merged folder that is not as it was written.
    """
    closer = closer_of(Path(run), merged)
    before = _closing(ledger, request)
    if before is not None:
        _finish(request, before)
        if closer.weights != before.body["weights"]:
            if closer.merged is None or closer.made != before.body["weights"]:
                raise EvidenceError(f"request {request.id} was closed by another run, '{before.body['run']}'")
            return _also_verified(ledger, request, closer, policy)
        return before.body["answer"], []
    reason = _reason(reason)
    if request.rows["taken"] is None:
        raise EvidenceError(
            f"request {request.id} lists near-duplicates that nobody decided about; `llm-forget request show` names "
            "them, and `llm-forget request run` takes --include_near all, none or ID,..."
        )
    decide(ledger, request, None)  # note what was decided, where that was cut off
    if closer.taken_away:
        refuse_others_taken_away(request, closer.run)
    else:
        refuse_other_rows(ledger, request, closer.run, closer.made)
    for made in _beneath(closer.run.path):
        note_run(ledger, made)
    exactness = _exactness(ledger, request, closer)
    answer, found, results = verified(closer, policy)
    note_run(ledger, closer.run)
    if closer.merged:
        note_run(ledger, closer.merged.folder)
        _refuse_taught(ledger, request, closer)
    about = _about(closer, policy, answer)
    advance(ledger, request, "verified", {**about, "results": json_digest(results["suites"])})
    if answer == "fail" or (answer == "inconclusive" and reason is None):
        return answer, found
    if answer == "inconclusive":
        _refuse_known(results)
    facts = {
        **about,
        "accepted_inconclusive": reason if answer == "inconclusive" else None,
        "exactness": exactness,
        "rules": [ruling.to_dict() for ruling in found],
        **facts_of(closer, results, token=request.content["token"], knew=_knew(ledger, request, closer)),
    }
    formats.write(request.folder / FACTS, facts, CertificateFacts)
    body = {"request": request.id, **about, "counts": request.content["counts"], "facts": canonical_digest(facts)}
    _finish(request, ledger.append("closed", body, once=_once(request), records=request.pairs()))
    return answer, found


def _refuse_known(results: Mapping[str, Any]) -> None:
    """That a policy cannot tell is no reason to certify what its suite measured as still known."""
    verdicts = {name: suite["verdict"].get("forgot", {}) for name, suite in results["suites"].items()}
    known = [name for name, verdict in verdicts.items() if verdict.get("answer") == "no"]
    if known:
        raise EvidenceError(
            f"suite {', '.join(known)} says 'forgot: no' of this run, so that the policy cannot tell is not accepted; "
            "run it by another recipe"
        )


def _about(closer: Closer, policy: str | Path, answer: str) -> dict[str, str]:
    return {"run": closer.name, "weights": closer.weights, "policy": policy_name(policy), "answer": answer}


def _also_verified(
    ledger: Ledger, request: Request, closer: Closer, policy: str | Path
) -> tuple[str, list[RuleResult]]:
    """Note that a model merged from what closed a request passes, too, or does not; the request stays as it is."""
    answer, found, results = verified(closer, policy)
    assert closer.merged is not None
    note_run(ledger, closer.merged.folder)
    body = {"request": request.id, "state": "verified", **_about(closer, policy, answer)}
    body["results"] = json_digest(results["suites"])
    ledger.append("request", body, once=canonical_digest(body))
    return answer, found


def read_facts(request: Request, closed: Event) -> dict[str, Any]:
    """What was kept when a request was closed.

    Raises:
        EvidenceBroken: it is not what the ledger says.
    """
    path = request.folder / FACTS
    advice = "restore it from a copy"
    if path.is_file():
        facts: dict[str, Any] = formats.read_content(path, CertificateFacts, advice=advice, error=EvidenceBroken)
        if canonical_digest(facts) == closed.body["facts"]:
            return facts
    raise EvidenceBroken(f"'{path}' is not what request {request.id} was closed with; {advice}")


def _once(request: Request) -> str:
    return canonical_digest({"closed": request.id, "token": request.content["token"]})


def _closing(ledger: Ledger, request: Request) -> Event | None:
    """The event that closed a request, where the ledger has it."""
    return next((event for event in ledger.events("closed") if event.body.get("once") == _once(request)), None)


def _finish(request: Request, event: Event) -> None:
    """After the ledger said so: note it, and remove what names rows."""
    read_facts(request, event)
    if not request.closed:
        note_step(request, "closed", event, canonical_digest(event.body))
    forget_rows(request)


def finish(ledger: Ledger, request: Request) -> None:
    """What a closing that was cut off left undone."""
    if request.closed:
        forget_rows(request)
    elif (event := _closing(ledger, request)) is not None:
        _finish(request, event)


def finish_all(ledger: Ledger) -> None:
    """Finish all closings that were cut off."""
    for request in listed(ledger.folder):
        if not request.closed and _closing(ledger, request) is not None:
            with locked(request.folder / ".lock"):
                finish(ledger, read(request.folder))


def closed_by(ledger: Ledger, request: Request) -> Event:
    """The event that closed a request.

    Raises:
        ValueError: it is not closed.
    """
    event = _closing(ledger, request)
    if event is None or not request.closed:
        raise EvidenceError(
            f"request {request.id} is {request.state}, not closed; first: "
            f"llm-forget request close {request.id} --run RUN"
        )
    return event


def _reason(text: str | None) -> str | None:
    if text is None:
        return None
    if not text.strip() or len(text) > LONGEST_REASON or not text.isprintable():
        raise EvidenceError(
            f"--accept_inconclusive needs a reason: 1 to {LONGEST_REASON} printable characters in one line"
        )
    return text.strip()


def _beneath(run: Path) -> list[Path]:
    """What a run started from, the first of all first: the ledger must know what they were trained on."""
    found: list[Path] = []
    while (folder := base_run(run)) is not None and len(found) < 8:
        run = folder
        found.insert(0, run)
    return found


def _asked(request: Request) -> list[int]:
    """Numbers of the events that say which rows are asked for."""
    return [step["seq"] for step in request.content["history"] if step["state"] in ("resolved", "decided")]


def _exactness(ledger: Ledger, request: Request, closer: Closer) -> dict[str, str]:
    """Which of `CLASSES` the deletion is of, by how the model was made."""
    if kind_of(closer.run).forgotten or closer.taken_away:
        as_adapter = closer.measured.adapter.is_dir()  # merged into the weights it can no longer be left off
        return _classed("suppressed" if as_adapter else "approximate")
    note_run(ledger, closer.run)
    if closer.merged:
        note_run(ledger, closer.merged.folder)
    steps = [step.event for step in training_history(ledger, closer.weights)]
    for kind, did in (("training", "a training that saw"), ("unlearning", "a model that was to unlearn")):
        if met := ledger.common_records(_asked(request), [event.seq for event in steps if event.kind == kind]):
            raise EvidenceError(
                f"run '{closer.run.path}' rests on {did} {len(met)} of the rows asked for; retrain from a model that "
                "never did, or unlearn"
            )
    if holds_any_record(ledger, closer.weights, _asked(request)):
        raise EvidenceError(
            f"run '{closer.run.path}' rests on a model that some of the rows asked for were unlearned from, so that it "
            "must have known them; retrain from a model that never did, or unlearn"
        )
    return _classed("exact")


def _refuse_taught(ledger: Ledger, request: Request, closer: Closer) -> None:
    """Nothing else that was added in a merge may have been trained on the rows."""
    assert closer.merged is not None
    for source in closer.merged.facts["sources"]:
        trained = [e.seq for e in ledger.events("training") if e.body["weights"] == source["weights"]]
        if source["scale"] > 0 and (met := ledger.common_records(_asked(request), trained)):
            raise EvidenceError(
                f"'{closer.merged.folder}' was merged from run '{source['run']}', too, which was trained to know "
                f"{len(met)} of the rows asked for; merge without it"
            )


def _knew(ledger: Ledger, request: Request, closer: Closer) -> dict[str, Any] | None:
    """Of a retrained model, the one that it replaces: the newest that was trained on the rows; None where none is."""
    if kind_of(closer.run).forgotten or closer.taken_away:
        return {"name": model_name(str((base := closer.run.provenance["base"])["name"])), "digest": base["digest"]}
    for event in reversed(ledger.events("training")):
        if ledger.common_records(_asked(request), [event.seq]):
            return {"name": event.body["run"], "digest": event.body["weights"]}
    return None


def _classed(name: str) -> dict[str, str]:
    return {"class": name, "why": CLASSES[name]}
