"""A deletion request in lines, safe for a terminal; ids only, never texts."""

from __future__ import annotations

import shlex
from pathlib import Path

from llm_forget.compliance.ledger.ledger import Ledger
from llm_forget.compliance.requests import limits
from llm_forget.compliance.requests.files import Request
from llm_forget.compliance.requests.steps import days_left
from llm_forget.core.text import plain

MUCH = 0.5  # share of the data from which on training anew is worth a thought


def resolved(request: Request) -> str:
    """``3 of 13 rows to forget, 23.1 % (2 exact, 1 normalised); 1 near-duplicates not taken``."""
    counts = request.content["counts"]
    parts = [f"{counts[key]:,} {key.replace('_', ' ')}" for key in ("exact", "normalised", "same_text") if counts[key]]
    if counts["near_included"]:
        parts.append(_near_duplicates(counts["near_included"]))
    share = counts["rows"] / counts["of"]
    text = f"{counts['rows']:,} of {counts['of']:,} rows to forget, {share:.1%} ({', '.join(parts)})"
    if counts["near_left"]:
        undecided = request.state != "closed" and request.rows["taken"] is None
        text += f"; {_near_duplicates(counts['near_left'])} {'to decide about' if undecided else 'not taken'}"
    if share > MUCH:
        text += "; more than half of the data: training anew on the rest may serve better"
    return text


def near(request: Request) -> list[str]:
    """Near-duplicates, and what was decided about them."""
    rows = request.rows
    if not rows["near"]:
        return []
    decided = "" if rows["taken"] is not None else "; decide with --include_near all, none or ID,..."
    lines = [f"near-duplicates in the rest of the data{decided}"]
    for one in rows["near"]:
        taken = "  taken" if one["id"] in (rows["taken"] or ()) else ""
        names = f"{plain(one['id'])}  like {plain(one['of'])}"
        lines.append(f"  {names}  {one['how']} {one['similarity']:.2f}{taken}")
    return lines


def protected(evidence: Path, request: Request) -> list[str]:
    """Rows of a request, near-duplicates too, that the owner protects."""
    rows = request.rows
    lines = []
    for row_id in limits.protected_among(limits.read(evidence), rows):
        said = "allowed" if row_id in rows.get("allowed", ()) else "not without --allow_protected REASON"
        lines.append(f"  {plain(row_id)}  {said}")
    return [f"rows that {limits.FILE} protects", *lines] if lines else []


def unlinking(request: Request) -> list[str]:
    """How to destroy the keys of an open request's subjects once it is closed; their names are in no file then."""
    rows = request.rows
    asked = {rows["subjects"].get(row_id) for row_id, how in rows["how"].items() if how != "same text"} - {None}
    if not asked:
        return []
    names = " ".join(shlex.quote(plain(str(name))) for name in sorted(map(str, asked)))
    return [f"last, when nobody need ask for the rows again: llm-forget audit unlink {names}"]


def due(request: Request) -> str:
    """``due 2026-12-22, in 30 days``."""
    date, closed = request.content["due"], request.times("closed")
    if date is None:
        return f"closed {closed[:10]}" if closed else "no date"
    if closed:
        return f"closed {closed[:10]}, {'in time' if closed[:10] <= date else 'late'} (due {date})"
    left = days_left(request) or 0
    return f"due {date}, {f'in {left} days' if left >= 0 else f'OVERDUE by {-left} days'}"


def still_held(ledger: Ledger, request: Request) -> list[str]:
    """What is to be said where the model that closed a request holds rows that others deleted."""
    from llm_forget.compliance.requests.close import closed_by
    from llm_forget.compliance.versions.deletion_check import deletions_in
    from llm_forget.compliance.versions.versions import requests_of

    closed = closed_by(ledger, request)
    others = [name for name in requests_of(deletions_in(ledger, closed.body["weights"])) if name != request.id]
    if not others:
        return []
    return [f"but '{closed.body['run']}' holds rows that {', '.join(others)} deleted: it is not to be taken into use"]


def still_public(ledger: Ledger, request: Request) -> list[str]:
    """What is to be said where models that hold the deleted rows were pushed and not withdrawn."""
    from llm_forget.compliance.versions.published_models import published_with_deleted_rows

    return [
        f"a model that holds these rows was pushed, and who has it can tell which were deleted: "
        f"llm-forget purge {repository} --revision {tag}"
        for repository, tag in published_with_deleted_rows(ledger, request.id)
    ]


def _near_duplicates(count: int) -> str:
    return f"{count:,} near-duplicate{'' if count == 1 else 's'}"
