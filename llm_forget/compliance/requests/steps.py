"""Deletion requests, step by step; every step is an event of the ledger::

    received -> resolved -> (decided) -> running -> executed -> verified -> closed

A step is first an event, then noted in the request's folder (`request_files`), so that never says more than the ledger.
A step that was cut off in between is done again and finds its event (``once``). A recipe that did not pass may be
followed by another: then it goes on from *running*.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_forget.compliance.ledger.chain import Event
from llm_forget.compliance.ledger.ledger import Ledger
from llm_forget.compliance.requests import limits
from llm_forget.compliance.requests.files import (
    FILE,
    Request,
    write_ids,
    write_rows,
)
from llm_forget.compliance.requests.matching import HOWS, counted
from llm_forget.core import formats
from llm_forget.core.errors import EvidenceError
from llm_forget.core.formats.evidence import DeletionRequest
from llm_forget.core.run_directory import Run
from llm_forget.core.strict_json import canonical_digest

if TYPE_CHECKING:
    from datasets import Dataset


def advance(
    ledger: Ledger, request: Request, state: str, body: Mapping[str, Any], *, records: bool = False
) -> dict[str, Any]:
    """Take a step: an event of the ledger, then a line of the history; the step taken last is not taken twice."""
    history = request.content["history"]
    event_body, digest = _said(request, state, body)
    if history and history[-1]["said"] == digest:
        return history[-1]
    once = canonical_digest({"step": len(history), "token": request.content["token"], "said": digest})
    event = ledger.append("request", event_body, once=once, records=request.pairs() if records else ())
    return note_step(request, state, event, digest)


def note_step(request: Request, state: str, event: Event, body_digest: str) -> dict[str, Any]:
    """A line of the history for an event that the ledger has."""
    step = {"state": state, "time": event.time, "seq": event.seq, "digest": event.digest, "said": body_digest}
    request.content["history"].append(step)
    formats.write(request.folder / FILE, request.content, DeletionRequest)
    return step


def amend(ledger: Ledger, request: Request, changes: Mapping[str, Any]) -> None:
    """Note what is now said otherwise of an open request: ``due``, ``authorised_by``, ``allow_protected``."""
    if others := {key: value for key, value in changes.items() if request.content.get(key) != value}:
        request.content |= others
        advance(ledger, request, "amended", others)


def allow_protected(ledger: Ledger, request: Request, reason: str) -> None:
    """Let a request remove those of its rows that `limits` protect.

    Raises:
        ValueError: there are none, or the reason is no line.
    """
    reason_line = limits.one_line(reason, "--allow_protected")
    protected_ids = limits.unallowed(limits.read(ledger.folder), request)
    rows = request.rows
    if not protected_ids and rows.get("allowed"):
        return  # said before
    if not protected_ids:
        raise EvidenceError(f"--allow_protected: no row of request {request.id} is protected; leave it out")
    allowed = [*rows.get("allowed", ()), *protected_ids]
    amend(ledger, request, {"allow_protected": reason_line, "protected": len(allowed)})
    write_rows(request.folder, {**rows, "allowed": allowed})


def decide(ledger: Ledger, request: Request, choice: str | None) -> None:
    """Say which near-duplicates are to be forgotten, too: ``all``, ``none`` or ids with commas.

    Raises:
        ValueError: there are some and no choice was ever made, or an id that is not among them.
    """
    rows = request.rows
    if choice is not None or rows["taken"] is None:
        included = _chosen([entry["id"] for entry in rows["near"]], choice, request.id)
        if included != rows["taken"]:
            rows |= {"taken": included, "decision": rows["decision"] + 1}
            write_rows(request.folder, rows)
    if not rows["near"]:
        return
    counts = request.content["counts"] = _counts(rows, request.content["counts"]["of"])
    body = {"decision": rows["decision"], **{key: counts[key] for key in ("near_included", "near_left")}}
    before = [step["said"] for step in request.content["history"] if step["state"] == "decided"]
    if _said(request, "decided", body)[1] not in before[-1:]:
        advance(ledger, request, "decided", body, records=True)


def write_lists(ledger: Ledger, request: Request, table: Dataset) -> tuple[dict[str, Any], int]:
    """Write the ids to forget and to retain; rows that an earlier request deleted are neither, but for its own.

    Args:
        table: rows of the request's source as the run will read them.

    Returns:
        The sources of a recipe that read them, and how many rows were deleted before.

    Raises:
        ValueError: these are not the rows that the request was resolved with, or none is left to retain.
    """
    from llm_forget.compliance.requests.matching import census, records

    digest, data_ids = census(records(table))
    if digest != request.content["data"]["digest"]:
        raise EvidenceError(
            f"the data of request {request.id} are not those it was resolved with ({len(data_ids):,} rows now, "
            f"{request.content['data']['rows']:,} then): bring them back, or add the request anew; a recipe's `fields` "
            "and `data_path` must be those of the request, too"
        )
    forget = set(request.ids())
    deleted = ledger.matching_ids(
        [event.seq for event in ledger.events("closed")], (one for one in data_ids if one not in forget)
    )
    retain = [row_id for row_id in data_ids if row_id not in forget | deleted]
    if not retain:
        raise EvidenceError(
            f"request {request.id} and those before it ask for all {counted(len(data_ids))} of the data, so nothing is "
            "left to retain; delete the model, or train one on other data"
        )
    source = request.rows["source"]
    spec = dict(source) if isinstance(source, Mapping) else {"path": source}
    ids_by_split = {"forget": [row_id for row_id in data_ids if row_id in forget], "retain": retain}
    sources = {
        split: {**spec, "ids": str(write_ids(request.folder, split, ids))} for split, ids in ids_by_split.items()
    }
    return sources, len(deleted)


def begin(ledger: Ledger, request: Request, attempt: Mapping[str, Any]) -> bool:
    """Note that a recipe is about to be run; False where this very attempt was executed already and its run is there.

    Args:
        attempt: ``output_dir``, and ``digest`` of everything that decides what comes out.

    Raises:
        ValueError: the request is closed.
    """
    if request.closed:
        raise EvidenceError(f"request {request.id} is closed already: nothing is to be run for it")
    attempts = request.content["attempts"]
    if attempts and attempts[-1]["digest"] == attempt["digest"]:
        if not attempts[-1].get("executed"):
            return True
        if Run(Path(attempt["output_dir"])).complete:
            return False
        attempts.pop()  # what it made is gone
    attempts.append(dict(attempt))
    advance(ledger, request, "running", {"attempt": attempt["digest"]})
    return True


def execute_noted(ledger: Ledger, request: Request, body: Mapping[str, Any]) -> None:
    """Note that the last attempt was executed and measured."""
    request.content["attempts"][-1]["executed"] = True
    advance(ledger, request, "executed", body)


def days_left(request: Request, today: date | None = None) -> int | None:
    """Days until the request is due; below 0 when overdue, None where it has no date or is closed."""
    due = request.content["due"]
    return (date.fromisoformat(due) - (today or datetime.now(UTC).date())).days if due and not request.closed else None


def _settle(ledger: Ledger, request: Request) -> None:
    """The first two steps, where they were cut off."""
    done = {step["state"] for step in request.content["history"]}
    content = request.content
    if "received" not in done:
        body = {key: content[key] for key in ("category", "due")}
        body |= {key: content[key] for key in ("authorised_by", "forced") if content[key]}
        advance(ledger, request, "received", body)
    if "resolved" not in done:
        advance(ledger, request, "resolved", {"counts": content["counts"], "data": content["data"]}, records=True)


def _said(request: Request, state: str, body: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    event_body = {"request": request.id, "state": state, **body}
    return event_body, canonical_digest(event_body)


def _counts(rows: Mapping[str, Any], of: int) -> dict[str, int]:
    match_kinds, included = list(rows["how"].values()), rows["taken"] or []
    listed_near = len(rows["near"])
    return {
        "rows": len(match_kinds) + len(included),
        **{name.replace(" ", "_"): match_kinds.count(name) for name in HOWS},
        "near_listed": listed_near,
        "near_included": len(included),
        "near_left": listed_near - len(included),
        "of": of,
    }


def _chosen(near: Sequence[str], choice: str | None, request_id: str) -> list[str]:
    if choice is None and near:
        raise EvidenceError(
            f"{counted(len(near))} of the data may be copies of what request {request_id} is about; look at them with "
            f"`llm-forget request show {request_id}` and decide with --include_near all, none or ID,..."
        )
    if choice in ("all", "none", None):
        return list(near) if choice == "all" else []
    chosen = list(dict.fromkeys(part.strip() for part in str(choice).split(",") if part.strip()))
    if not chosen:
        raise EvidenceError("--include_near is empty; allowed: all, none, or ids with commas")
    if unknown := [row_id for row_id in chosen if row_id not in near]:
        raise EvidenceError(
            f"{len(unknown)} of --include_near are not among the {counted(len(near))} listed for request {request_id}; "
            f"allowed: all, none, or ids that `llm-forget request show {request_id}` lists"
        )
    return chosen
