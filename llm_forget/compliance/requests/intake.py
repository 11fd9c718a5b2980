"""Receive deletion requests, and lock a request while one process works on it."""

import calendar
import contextlib
import secrets
from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from llm_forget.compliance.ledger.ledger import Ledger
from llm_forget.compliance.requests import files, limits
from llm_forget.compliance.requests.files import Request
from llm_forget.compliance.requests.matching import MatchedRows
from llm_forget.compliance.requests.steps import amend, count_matches, record_intake
from llm_forget.core.errors import EvidenceError
from llm_forget.core.registry import did_you_mean


def add(
    evidence: Path,
    source: Any,
    match: MatchedRows,
    *,
    category: str = "gdpr",
    due: str | None = None,
    authorised_by: str | None = None,
    force: bool = False,
) -> tuple[Request, bool]:
    """Create a request for matched rows, or amend the open request for the same rows.

    Args:
        source: the searched data, as in a recipe.
        due: ``YYYY-MM-DD``. The default for category ``gdpr`` is one month from today (GDPR Art. 12(3)).
        authorised_by: a role, not the name of a person.
        force: accept a request that exceeds a quota of `limits`.

    Returns the request, and whether it is new.
    Raises EvidenceError for an unknown category or role, an invalid date, or an exceeded quota.
    """
    if category not in files.CATEGORIES:
        raise EvidenceError(f"category is '{category}'; {did_you_mean(category, files.CATEGORIES)}")
    from llm_forget.compliance.requests.close import finish_all_closings

    limit = limits.read(evidence)
    if authorised_by:
        authorised_by = limits.check_role(limit, authorised_by)
    options = {"due": due and _date(due), "authorised_by": authorised_by}
    with Ledger.open(evidence, create=True) as ledger, files.locked(evidence / files.FOLDER / ".lock"):
        finish_all_closings(ledger)
        open_requests = [request for request in files.list_requests(evidence) if not request.closed]
        for request in open_requests:
            if _is_same(request, source, match, category):
                with files.locked(request.folder / ".lock", wait=False):
                    request = files.read_request(request.folder)
                    record_intake(ledger, request)
                    amend(ledger, request, {key: value for key, value in options.items() if value is not None})
                return request, False
        excess = limits.exceeded_quota(limit, match, open_requests)
        if excess and not force:
            raise EvidenceError(f"{excess}; close open requests first, or give --force, which is recorded")
        options["due"] = options["due"] or (_in_a_month() if category == "gdpr" else None)
        content = {"category": category, **options, "forced": excess is not None}
        return _create(ledger, source, match, content), True


def _create(ledger: Ledger, source: Any, match: MatchedRows, options: dict[str, Any]) -> Request:
    """Create a request, record its first two steps and return it. The caller must hold the lock of the requests."""
    rows = {
        "source": source,
        "how": match.kinds,
        "subjects": match.subjects,
        "said": match.content_digests,
        "near": [row._asdict() for row in match.near],
        "taken": None if match.near else [],
        "decision": 0,
    }
    content: dict[str, Any] = {
        "token": secrets.token_hex(16),  # makes the events of two requests differ
        **options,
        "data": {"digest": match.digest, "rows": match.total},
        "counts": count_matches(rows, match.total),
        "history": [],
        "attempts": [],
    }
    numbers = (files.request_number(Path(event.body["request"])) for event in ledger.events("request"))
    request = files.create_request(ledger.folder / files.FOLDER, content, rows, max(numbers, default=0))
    record_intake(ledger, request)
    return request


@contextlib.contextmanager
def locked_request(evidence: Path, request_id: str) -> Iterator[tuple[Ledger, Request]]:
    """Open the ledger, lock a request, complete its interrupted steps, and yield (ledger, request).

    Raises EvidenceError if the request does not exist or another process works on it.
    """
    from llm_forget.compliance.requests.close import finish_closing

    folder = files.find_request(evidence, request_id).folder
    with Ledger.open(evidence) as ledger, files.locked(folder / ".lock", wait=False):
        request = files.read_request(folder)
        record_intake(ledger, request)
        finish_closing(ledger, request)
        yield ledger, request


def _is_same(request: Request, source: Any, match: MatchedRows, category: str) -> bool:
    """Return whether an open request has the same data, category, rows and near-duplicates as a new one."""
    rows, content = request.rows, request.content
    return (
        (rows["source"], content["data"]["digest"], content["category"]) == (source, match.digest, category)
        and rows["how"].keys() == match.kinds.keys()
        and {row["id"] for row in rows["near"]} == {row.id for row in match.near}
    )


def _date(text: str) -> str:
    try:
        return date.fromisoformat(text).isoformat()
    except ValueError:
        raise EvidenceError(f"due is '{text}'; give a date as YYYY-MM-DD") from None


def _in_a_month() -> str:
    today = datetime.now(UTC).date()
    year, month = divmod(today.year * 12 + today.month, 12)
    return date(year, month + 1, min(today.day, calendar.monthrange(year, month + 1)[1])).isoformat()
