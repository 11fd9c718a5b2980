"""Closing a deletion request: the run must be about its rows, be measured as it is, and pass a policy.

What the certificate will say is taken from the run now and kept as ``facts.json``, whose digest is in the ledger: the
run may be measured anew, moved or deleted later.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from llm_forget.audit.canonical import canonical_digest
from llm_forget.audit.chain import Event
from llm_forget.audit.claims import CLASSES
from llm_forget.audit.facts import facts_of
from llm_forget.audit.history import note_run, weights_of
from llm_forget.audit.ledger import Ledger
from llm_forget.audit.lineage import led_to
from llm_forget.audit.origin import base_of
from llm_forget.audit.request_files import Request, forget_rows
from llm_forget.audit.requests import advance, note_step
from llm_forget.audit.run_rows import refuse_other_rows
from llm_forget.measured import read_results
from llm_forget.run import EvidenceBroken, Run, json_digest, read_json, write_json
from llm_forget.verify import Ruling, policy_name, verify

FACTS = "facts.json"
LONGEST_REASON = 500


def close(
    ledger: Ledger, request: Request, run: str | Path, *, policy: str | Path = "default", reason: str | None = None
) -> tuple[str, list[Ruling]]:
    """Apply a policy to a run and close the request where it passes, or is inconclusive and that is accepted.

    Args:
        ledger: of the request's evidence.
        request: not closed, or closed by this run.
        run: what forgot the rows: an unlearning run, or one retrained without them.
        policy: name of a shipped policy, or a file.
        reason: why an inconclusive answer is accepted; it is signed and published: no names.

    Returns:
        The policy's answer, and what became of each rule. The request's state says whether it is closed.

    Raises:
        ValueError: a run that did not forget these rows, was not measured, or is not as it was measured; or the request
            is closed by another run.
    """
    finished = Run.open(run)
    weights = weights_of(finished)
    before = _closing(ledger, request)
    if before is not None:
        _finish(request, before)
        if before.body["weights"] != weights:
            raise ValueError(f"request {request.id} was closed by another run, '{before.body['run']}'")
        return before.body["answer"], []
    reason = _reason(reason)
    if request.rows["taken"] is None:
        raise ValueError(
            f"request {request.id} lists near-duplicates that nobody decided about; `llm-forget request show` names "
            "them, and `llm-forget request run` takes --include_near all, none or ID,..."
        )
    refuse_other_rows(ledger, request, finished, weights)
    for made in _beneath(finished):
        note_run(ledger, made)
    exactness = _exactness(ledger, request, finished, weights)
    answer, found = verify(finished.path, policy)
    results = read_results(finished)
    _refuse_other_weights(finished, results)
    note_run(ledger, finished)
    about = {
        "run": finished.path.resolve().name,
        "weights": weights,
        "policy": policy_name(policy),
        "answer": answer,
    }
    advance(ledger, request, "verified", {**about, "results": json_digest(results["suites"])})
    if answer == "fail" or (answer == "inconclusive" and reason is None):
        return answer, found
    facts = {
        **about,
        "accepted_inconclusive": reason if answer == "inconclusive" else None,
        "exactness": exactness,
        "rules": [ruling.to_dict() for ruling in found],
        **facts_of(finished, weights, results),
    }
    write_json(request.folder / FACTS, facts)
    body = {"request": request.id, **about, "counts": request.content["counts"], "facts": canonical_digest(facts)}
    _finish(request, ledger.append("closed", body, once=_once(request), records=request.pairs()))
    return answer, found


def read_facts(request: Request, closed: Event) -> dict[str, Any]:
    """What was kept when a request was closed.

    Raises:
        EvidenceBroken: it is not what the ledger says.
    """
    path = request.folder / FACTS
    if not path.is_file() or canonical_digest(facts := read_json(path)) != closed.body["facts"]:
        raise EvidenceBroken(f"'{path}' is not what request {request.id} was closed with; restore it from a copy")
    return facts


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
    if (event := _closing(ledger, request)) is not None:
        _finish(request, event)


def closed_by(ledger: Ledger, request: Request) -> Event:
    """The event that closed a request.

    Raises:
        ValueError: it is not closed.
    """
    event = _closing(ledger, request)
    if event is None or not request.closed:
        raise ValueError(
            f"request {request.id} is {request.state}, not closed; first: "
            f"llm-forget request close {request.id} --run RUN"
        )
    return event


def _reason(text: str | None) -> str | None:
    if text is None:
        return None
    if not text.strip() or len(text) > LONGEST_REASON or not text.isprintable():
        raise ValueError(
            f"--accept_inconclusive needs a reason: 1 to {LONGEST_REASON} printable characters in one line"
        )
    return text.strip()


def _beneath(run: Run) -> list[Run]:
    """Finished runs that a run started from, the first of all first: the ledger must know what they were trained on."""
    found: list[Run] = []
    while (folder := base_of(run.path)) is not None and len(found) < 8:
        run = Run.open(folder)
        found.insert(0, run)
    return found


def _exactness(ledger: Ledger, request: Request, run: Run, weights: str) -> dict[str, str]:
    """Which of `CLASSES` the deletion is of, by how the model was made."""
    if run.state["kind"] == "unlearn":
        return _classed("suppressed" if run.adapter.is_dir() else "approximate")
    note_run(ledger, run)
    trained = [step.event.seq for step in led_to(ledger, weights) if step.event.kind == "training"]
    asked = [step["seq"] for step in request.content["history"] if step["state"] in ("resolved", "decided")]
    if met := ledger.common(asked, trained):
        raise ValueError(
            f"run '{run.path}' rests on a training that saw {len(met)} of the rows asked for; retrain from a model "
            "that never did, or unlearn"
        )
    return _classed("exact")


def _classed(name: str) -> dict[str, str]:
    return {"class": name, "why": CLASSES[name]}


def _refuse_other_weights(run: Run, results: Mapping[str, Any]) -> None:
    """The results must be of the weights that are there now, in the run's own precision."""
    from llm_forget.config import model_part
    from llm_forget.evals.measure import Subject

    model = model_part(run.config)
    if run.state["kind"] == "unlearn" and run.adapter.is_dir():
        subject = Subject("unlearned", model, run.adapter)
    else:
        subject = Subject("unlearned", replace(model, model_name_or_path=str(run.path), model_revision="main"))
    if results["models"]["unlearned"] is None or subject.digest != results["models"]["unlearned"]["digest"]:
        raise ValueError(
            f"the results of run '{run.path}' are of other weights, or of another precision, than it holds; evaluate "
            f"it again: llm-forget evaluate {run.path}"
        )
