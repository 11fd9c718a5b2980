"""Deletion requests: received, found again, and worked on by one process at a time."""

from __future__ import annotations

import calendar
import contextlib
import secrets
from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from llm_forget.compliance.ledger.ledger import Ledger
from llm_forget.compliance.requests import limits
from llm_forget.compliance.requests.files import CATEGORIES, FOLDER, Request, create, find, listed, locked, number, read
from llm_forget.compliance.requests.matching import Match
from llm_forget.compliance.requests.steps import _counts, _settle, amend
from llm_forget.core.errors import EvidenceError
from llm_forget.core.registry import did_you_mean


def add(
    evidence: Path,
    source: Any,
    match: Match,
    *,
    category: str = "gdpr",
    due: str | None = None,
    authorised_by: str | None = None,
    force: bool = False,
) -> tuple[Request, bool]:
    """Receive a request that was resolved to rows; the same rows of the same data are one open request.

    Another ``due`` or ``authorised_by`` than a known request has is an amendment of it.

    Args:
        evidence: the evidence folder, made where it is not there.
        source: the data that were searched, as a recipe names them.
        match: what was found.
        category: one of `CATEGORIES`.
        due: ``YYYY-MM-DD``; default for gdpr: a month from now (Art. 12(3)).
        authorised_by: a role, no name of a person.
        force: receive it although it exceeds a quota of `limits`.

    Returns:
        The request, and whether it is new.

    Raises:
        ValueError: an unknown category or role, no date, or a quota is exceeded.
    """
    if category not in CATEGORIES:
        raise EvidenceError(f"category is '{category}'; {did_you_mean(category, CATEGORIES)}")
    from llm_forget.compliance.requests.close import finish_all

    limit = limits.read(evidence)
    given = {"due": due and _date(due), "authorised_by": authorised_by and limits.role(limit, authorised_by)}
    with Ledger.open(evidence, create=True) as ledger, locked(evidence / FOLDER / ".lock"):
        finish_all(ledger)
        still_open = [known for known in listed(evidence) if not known.closed]
        for known in still_open:
            if _is_same(known, source, match, category):
                with locked(known.folder / ".lock", wait=False):
                    known = read(known.folder)
                    _settle(ledger, known)
                    amend(ledger, known, {key: value for key, value in given.items() if value is not None})
                return known, False
        over = limits.exceeded(limit, match, still_open)
        if over and not force:
            raise EvidenceError(f"{over}; close open ones first, or give --force, which the ledger will say")
        rows = {
            "source": source,
            "how": match.how,
            "subjects": match.subjects,
            "said": match.said,
            "near": [one._asdict() for one in match.near],
            "taken": None if match.near else [],
            "decision": 0,
        }
        content: dict[str, Any] = {
            "token": secrets.token_hex(16),  # so that events of two requests never pass for one
            "category": category,
            "due": given["due"] or (_in_a_month() if category == "gdpr" else None),
            "authorised_by": given["authorised_by"],
            "forced": over is not None,
            "data": {"digest": match.digest, "rows": match.total},
            "counts": _counts(rows, match.total),
            "history": [],
            "attempts": [],
        }
        used = (number(Path(event.body["request"])) for event in ledger.events("request"))
        request = create(evidence / FOLDER, content, rows, max(used, default=0))
        _settle(ledger, request)
        return request, True


@contextlib.contextmanager
def working_on(evidence: Path, request_id: str) -> Iterator[tuple[Ledger, Request]]:
    """The ledger and a request that nobody else works on.

    Raises:
        ValueError: no such request, or another process works on it.
    """
    from llm_forget.compliance.requests.close import finish

    folder = find(evidence, request_id).folder
    with Ledger.open(evidence) as ledger, locked(folder / ".lock", wait=False):
        request = read(folder)
        _settle(ledger, request)
        finish(ledger, request)
        yield ledger, request


def _is_same(known: Request, source: Any, match: Match, category: str) -> bool:
    rows = known.rows
    same = (rows["source"], known.content["data"]["digest"], known.content["category"])
    return (
        same == (source, match.digest, category)
        and set(rows["how"]) == set(match.how)
        and ({one["id"] for one in rows["near"]} == {one.id for one in match.near})
    )


def _date(text: str) -> str:
    try:
        return date.fromisoformat(text).isoformat()
    except ValueError:
        raise EvidenceError(f"due is '{text}'; give a day as YYYY-MM-DD") from None


def _in_a_month() -> str:
    today = datetime.now(UTC).date()
    year, month = divmod(today.year * 12 + today.month, 12)
    return date(year, month + 1, min(today.day, calendar.monthrange(year, month + 1)[1])).isoformat()
