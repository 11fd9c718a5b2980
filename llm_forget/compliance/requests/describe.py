"""Describe deletion requests in lines that are safe to print in a terminal. The lines never contain text of rows."""

import shlex
from pathlib import Path

from llm_forget.compliance.ledger.ledger import Ledger
from llm_forget.compliance.requests import limits
from llm_forget.compliance.requests.files import Request
from llm_forget.compliance.requests.steps import days_left
from llm_forget.core.files import cache_folder
from llm_forget.core.run_directory import Run
from llm_forget.core.text import plain

LARGE_SHARE = 0.5  # share of the data above which retraining is worth considering


def resolved(request: Request) -> str:
    """Return a summary of the matched rows: ``3 of 13 rows to forget, 23.1% (3 exact); 1 near-duplicate not taken``."""
    counts = request.content["counts"]
    parts = [f"{counts[key]:,} {key.replace('_', ' ')}" for key in ("exact", "normalised", "same_text") if counts[key]]
    if counts["near_included"]:
        parts.append(_near_duplicates(counts["near_included"]))
    share = counts["rows"] / counts["of"]
    text = f"{counts['rows']:,} of {counts['of']:,} rows to forget, {share:.1%} ({', '.join(parts)})"
    if counts["near_left"]:
        undecided = request.state != "closed" and request.rows["taken"] is None
        text += f"; {_near_duplicates(counts['near_left'])} {'to decide about' if undecided else 'not taken'}"
    if share > LARGE_SHARE:
        text += "; more than half of the data: consider retraining on the rest"
    return text


def near(request: Request) -> list[str]:
    """Return lines that list the near-duplicates of a request and mark those that will be forgotten."""
    rows = request.rows
    if not rows["near"]:
        return []
    decided = "" if rows["taken"] is not None else "; decide with --include_near all, none or ID,..."
    lines = [f"near-duplicates in the rest of the data{decided}"]
    for row in rows["near"]:
        mark = "  taken" if row["id"] in (rows["taken"] or ()) else ""
        lines.append(f"  {plain(row['id'])}  like {plain(row['of'])}  {row['how']} {row['similarity']:.2f}{mark}")
    return lines


def protected(evidence: Path, request: Request) -> list[str]:
    """Return lines that list those rows and near-duplicates of a request that `limits` protects."""
    rows = request.rows
    lines = []
    for row_id in limits.protected_among(limits.read(evidence), rows):
        status = "allowed" if row_id in rows.get("allowed", ()) else "not without --allow_protected REASON"
        lines.append(f"  {plain(row_id)}  {status}")
    return [f"rows that {limits.FILE} protects", *lines] if lines else []


def unlink_command(request: Request) -> list[str]:
    """Return a line with the command that unlinks the subjects of an open request; no line without subjects.

    Call this before the request is closed, because closing deletes the names of the subjects.
    """
    rows = request.rows
    subjects = {rows["subjects"].get(row_id) for row_id, kind in rows["how"].items() if kind != "same text"} - {None}
    if not subjects:
        return []
    names = " ".join(shlex.quote(plain(str(name))) for name in sorted(map(str, subjects)))
    return [f"finally, once the rows need not be looked up any more: llm-forget audit unlink {names}"]


def due(request: Request) -> str:
    """Return the deadline as text, such as ``due 2026-12-22, in 30 days``."""
    date, closed = request.content["due"], request.times("closed")
    if date is None:
        return f"closed {closed[:10]}" if closed else "no date"
    if closed:
        return f"closed {closed[:10]}, {'in time' if closed[:10] <= date else 'late'} (due {date})"
    left = days_left(request) or 0
    return f"due {date}, {f'in {left} days' if left >= 0 else f'OVERDUE by {-left} days'}"


def other_deleted_rows(ledger: Ledger, request: Request) -> list[str]:
    """Return a warning line if the model that closed a request contains rows that other requests deleted."""
    from llm_forget.compliance.requests.close import closing_event
    from llm_forget.compliance.versions.deletion_check import Deletions
    from llm_forget.compliance.versions.versions import requests_of

    closed = closing_event(ledger, request)
    deletions = Deletions(ledger).contained_in(closed.body["weights"])
    others = [name for name in requests_of(deletions) if name != request.id]
    if not others:
        return []
    return [f"warning: '{closed.body['run']}' holds rows that {', '.join(others)} deleted; do not use it"]


def published_copies(ledger: Ledger, request: Request) -> list[str]:
    """Return a warning line for each published model that contains the deleted rows."""
    from llm_forget.compliance.versions.published_models import published_with_deleted_rows

    return [
        "warning: a published model contains these rows, and comparing it reveals which were deleted; withdraw it: "
        f"llm-forget purge {repository} --revision {tag}"
        for repository, tag in published_with_deleted_rows(ledger, request.id)
    ]


def teacher_remains(run: Path) -> list[str]:
    """Return a warning line for each remaining model or file of a run's teacher that contains the forget rows."""
    finished = Run(run)
    lines = [
        f"warning: '{auxiliary.path}' was trained on the forget rows for the teacher and holds them; delete the folder "
        "unless the next request's teacher needs it"
        for name, auxiliary in finished.auxiliary_runs.items()
        if name == "aux_with"
    ]
    name = finished.provenance.get("teacher", {}).get("cache") if finished.provenance_file.is_file() else None
    if name and (file := cache_folder() / "teacher" / name).is_file():
        lines.append(f"warning: '{file}' holds the teacher's log-probs at the forget rows; delete the file")
    return lines


def _near_duplicates(count: int) -> str:
    return f"{count:,} near-duplicate{'' if count == 1 else 's'}"
