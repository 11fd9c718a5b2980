"""The steps of a deletion request. Every step is an event of the ledger::

    received -> resolved -> (decided) -> running -> executed -> verified -> closed

A step is added to the ledger first and then to request.json. If a process is killed between the two, the step is
repeated, and the argument ``once`` of `Ledger.append` prevents a second event. If a run does not pass, the request
returns to *running* with another recipe.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_forget.compliance.ledger.chain import Event
from llm_forget.compliance.ledger.ledger import Ledger
from llm_forget.compliance.requests import limits
from llm_forget.compliance.requests.files import FILE, Request, write_ids, write_rows
from llm_forget.compliance.requests.matching import MATCH_KINDS, row_count
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
    """Add a step to the ledger, then to the request's history, and return the step. The last step is not added twice.

    ``body`` has further keys of the event. If ``records``, the event is about the rows of the request.
    """
    history = request.content["history"]
    event_body, digest = _event_body(request, state, body)
    if history and history[-1]["said"] == digest:
        return history[-1]
    once = canonical_digest({"step": len(history), "token": request.content["token"], "said": digest})
    event = ledger.append("request", event_body, once=once, records=request.pairs() if records else ())
    return record_step(request, state, event, digest)


def record_step(request: Request, state: str, event: Event, body_digest: str) -> dict[str, Any]:
    """Add an event of the ledger to the request's history in request.json, and return the new step."""
    step = {"state": state, "time": event.time, "seq": event.seq, "digest": event.digest, "said": body_digest}
    request.content["history"].append(step)
    formats.write(request.folder / FILE, request.content, DeletionRequest)
    return step


def amend(ledger: Ledger, request: Request, changes: Mapping[str, Any]) -> None:
    """Set ``due``, ``authorised_by`` or ``allow_protected`` of an open request. If a value changes, add an event."""
    if changed := {key: value for key, value in changes.items() if request.content.get(key) != value}:
        request.content |= changed
        advance(ledger, request, "amended", changed)


def allow_protected(ledger: Ledger, request: Request, reason: str) -> None:
    """Allow a request to remove its protected rows (see `limits`), and record the reason.

    Raises EvidenceError if the request has no protected rows, or the reason is not one printable line.
    """
    reason_line = limits.one_line(reason, "--allow_protected")
    protected_ids = limits.unallowed(limits.read(ledger.folder), request)
    rows = request.rows
    if not protected_ids:
        if rows.get("allowed"):
            return
        raise EvidenceError(f"--allow_protected: no row of request {request.id} is protected; leave it out")
    allowed = [*rows.get("allowed", ()), *protected_ids]
    amend(ledger, request, {"allow_protected": reason_line, "protected": len(allowed)})
    write_rows(request.folder, {**rows, "allowed": allowed})


def decide(ledger: Ledger, request: Request, choice: str | None) -> None:
    """Record which near-duplicates to forget. ``choice`` is ``all``, ``none``, comma-separated ids, or None to keep an
    earlier decision.

    Raises EvidenceError if near-duplicates exist without a decision, or an id is not one of them.
    """
    rows = request.rows
    if choice is not None or rows["taken"] is None:
        included = _chosen_ids([entry["id"] for entry in rows["near"]], choice, request.id)
        if included != rows["taken"]:
            rows |= {"taken": included, "decision": rows["decision"] + 1}
            write_rows(request.folder, rows)
    if not rows["near"]:
        return
    counts = request.content["counts"] = count_matches(rows, request.content["counts"]["of"])
    body = {"decision": rows["decision"], **{key: counts[key] for key in ("near_included", "near_left")}}
    earlier = [step["said"] for step in request.content["history"] if step["state"] == "decided"]
    if _event_body(request, "decided", body)[1] not in earlier[-1:]:
        advance(ledger, request, "decided", body, records=True)


def write_lists(ledger: Ledger, request: Request, table: Dataset) -> tuple[dict[str, Any], int]:
    """Write the lists of ids to forget and to retain. Rows that earlier requests deleted are not retained.

    ``table`` has the rows of the request's source, loaded as the run will load them. Returns a dict with the sources
    ``forget`` and ``retain`` for the recipe, and the number of rows deleted earlier. Raises EvidenceError if the data
    changed since they were searched, or no row is left to retain.
    """
    from llm_forget.compliance.requests.matching import data_digest, row_contents

    digest, data_ids = data_digest(row_contents(table))
    if digest != request.content["data"]["digest"]:
        raise EvidenceError(
            f"the data of request {request.id} changed since it was resolved ({len(data_ids):,} rows now, "
            f"{request.content['data']['rows']:,} then); restore them, or add the request again; `fields` and "
            "`data_path` of the recipe must be those of the request"
        )
    forget = set(request.ids())
    closed_seqs = [event.seq for event in ledger.events("closed")]
    deleted = ledger.matching_ids(closed_seqs, (row_id for row_id in data_ids if row_id not in forget))
    retain = [row_id for row_id in data_ids if row_id not in forget | deleted]
    if not retain:
        raise EvidenceError(
            f"request {request.id} and earlier ones delete all {row_count(len(data_ids))} of the data, so nothing is "
            "left to retain; delete the model, or train one on other data"
        )
    source = request.rows["source"]
    spec = dict(source) if isinstance(source, Mapping) else {"path": source}
    ids_by_split = {"forget": [row_id for row_id in data_ids if row_id in forget], "retain": retain}
    sources = {
        split: {**spec, "ids": str(write_ids(request.folder, split, ids))} for split, ids in ids_by_split.items()
    }
    return sources, len(deleted)


def begin_attempt(ledger: Ledger, request: Request, attempt: Mapping[str, Any]) -> bool:
    """Record that a training run starts, and return True. Return False if this attempt already has a finished run.

    ``attempt`` has ``output_dir``, and as ``digest`` the digest of all settings that affect the training.
    Raises EvidenceError if the request is closed.
    """
    if request.closed:
        raise EvidenceError(f"request {request.id} is closed already; nothing is run")
    attempts = request.content["attempts"]
    if attempts and attempts[-1]["digest"] == attempt["digest"]:
        if not attempts[-1].get("executed"):
            return True
        if Run(Path(attempt["output_dir"])).complete:
            return False
        attempts.pop()  # its run was deleted
    attempts.append(dict(attempt))
    advance(ledger, request, "running", {"attempt": attempt["digest"]})
    return True


def mark_executed(ledger: Ledger, request: Request, body: Mapping[str, Any]) -> None:
    """Record that the run of the last attempt was trained and evaluated."""
    request.content["attempts"][-1]["executed"] = True
    advance(ledger, request, "executed", body)


def days_left(request: Request, today: date | None = None) -> int | None:
    """Return the days until a request is due (negative if overdue), or None if it is closed or has no due date."""
    due = request.content["due"]
    return (date.fromisoformat(due) - (today or datetime.now(UTC).date())).days if due and not request.closed else None


def record_intake(ledger: Ledger, request: Request) -> None:
    """Record the first two steps, *received* and *resolved*, unless they are recorded already."""
    done = {step["state"] for step in request.content["history"]}
    content = request.content
    if "received" not in done:
        body = {key: content[key] for key in ("category", "due")}
        body |= {key: content[key] for key in ("authorised_by", "forced") if content[key]}
        advance(ledger, request, "received", body)
    if "resolved" not in done:
        advance(ledger, request, "resolved", {"counts": content["counts"], "data": content["data"]}, records=True)


def _event_body(request: Request, state: str, body: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Return the body of a step's event, and the digest of the body."""
    event_body = {"request": request.id, "state": state, **body}
    return event_body, canonical_digest(event_body)


def count_matches(rows: Mapping[str, Any], of: int) -> dict[str, int]:
    """Return the counts (see `RowCounts`) of the content of rows.json. ``of`` is the number of rows in the data."""
    match_kinds, included = list(rows["how"].values()), rows["taken"] or []
    listed_near = len(rows["near"])
    return {
        "rows": len(match_kinds) + len(included),
        **{name.replace(" ", "_"): match_kinds.count(name) for name in MATCH_KINDS},
        "near_listed": listed_near,
        "near_included": len(included),
        "near_left": listed_near - len(included),
        "of": of,
    }


def _chosen_ids(near: Sequence[str], choice: str | None, request_id: str) -> list[str]:
    """Return the ids of the near-duplicates that a choice selects. Raise EvidenceError for an invalid choice, and for
    None if there are near-duplicates.
    """
    if choice is None and near:
        raise EvidenceError(
            f"{row_count(len(near))} of the data may be copies of rows of request {request_id}; list them with "
            f"`llm-forget request show {request_id}` and decide with --include_near all, none or ID,..."
        )
    if choice in ("all", "none", None):
        return list(near) if choice == "all" else []
    chosen = list(dict.fromkeys(part.strip() for part in str(choice).split(",") if part.strip()))
    if not chosen:
        raise EvidenceError("--include_near is empty; allowed: all, none, or comma-separated ids")
    if unknown := [row_id for row_id in chosen if row_id not in near]:
        raise EvidenceError(
            f"{len(unknown)} of --include_near are not among the {row_count(len(near))} listed for request "
            f"{request_id}; allowed: all, none, or ids that `llm-forget request show {request_id}` lists"
        )
    return chosen
