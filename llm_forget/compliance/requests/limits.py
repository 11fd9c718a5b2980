"""What a deletion request may not do unasked: ``limits.yaml`` in the evidence folder, written by its owner::

    protected: [safety.jsonl, {path: data.jsonl, ids: keep.txt}]   # rows that no request removes without a reason given
    max_share: 0.2                           # of the data, that all open requests on them may take together
    max_rows: 1000                           # that all open requests may take together
    authorised_by: [privacy office, legal]   # one of these must stand behind a request before it is run or closed

Whoever may ask for deletions could otherwise remove what keeps a model safe, or train it to pieces. Protected rows are
named by where they are, as in a recipe, so that the evidence holds no copy of them; they are recognised by what they
say after normalising, whatever their ids are. Every exception is an event of the ledger.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from llm_forget.compliance.requests.files import Request
from llm_forget.compliance.requests.matching import Match, counted, records, said_digest
from llm_forget.core.errors import EvidenceError
from llm_forget.core.registry import did_you_mean

FILE = "limits.yaml"
LONGEST = 500  # letters of a reason or a role


@dataclass(frozen=True)
class Limits:
    """What the owner wrote; nothing is limited by default."""

    protected: tuple[Any, ...] = ()
    max_share: float | None = None
    max_rows: int | None = None
    authorised_by: tuple[str, ...] = ()


def read(evidence: Path) -> Limits:
    """The limits of an evidence folder.

    Raises:
        ValueError: not YAML, a key that is none, or a value that cannot be meant.
    """
    import yaml

    path = evidence / FILE
    if not path.is_file():
        return Limits()
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        raise EvidenceError(f"'{path}' is not valid YAML in UTF-8; mend it") from None
    keys = [field.name for field in fields(Limits)]
    if not isinstance(content, dict):
        raise EvidenceError(f"'{path}' must be a mapping with some of {', '.join(keys)}")
    for key in content:
        if key not in keys:
            raise EvidenceError(f"'{path}' has no key '{key}'; {did_you_mean(str(key), keys)}")
    for key in ("protected", "authorised_by"):
        values = [] if content.get(key) is None else content[key]
        content[key] = tuple(values) if isinstance(values, list) else (values,)
    share, rows = content.get("max_share"), content.get("max_rows")
    if share is not None and (not isinstance(share, int | float) or isinstance(share, bool) or not 0 < share <= 1):
        raise EvidenceError(f"'{path}': max_share is {share!r}; it is a part of the data, above 0 and at most 1")
    if rows is not None and (not isinstance(rows, int) or isinstance(rows, bool) or rows < 1):
        raise EvidenceError(f"'{path}': max_rows is {rows!r}; it is a number of rows, 1 or more")
    if not all(isinstance(role, str) and role.strip() for role in content["authorised_by"]):
        raise EvidenceError(f"'{path}': authorised_by must be a list of roles, such as [privacy office]")
    if not all(isinstance(source, str | dict) for source in content["protected"]):
        raise EvidenceError(f"'{path}': protected must be a list of sources, such as [safety.jsonl]")
    return Limits(**content)


def exceeded(limits: Limits, match: Match, open_requests: Iterable[Request]) -> str | None:
    """Which quota a new request would exceed together with those that are open, as the end of a sentence.

    Near-duplicates count: they may be taken later, and who asks can write as many as they like.
    """
    row_ids = {*match.how, *(entry.id for entry in match.near)}
    all_rows = len(row_ids)
    for request in open_requests:
        rows = request.rows
        ids = {*rows["how"], *(entry["id"] for entry in rows["near"])}
        all_rows += len(ids)
        if request.content["data"]["digest"] == match.digest:
            row_ids.update(ids)
    total_text = "open requests, with their near-duplicates, would take"
    if limits.max_rows is not None and all_rows > limits.max_rows:
        return f"{total_text} {counted(all_rows)}, and '{FILE}' allows {limits.max_rows:,}"
    share = len(row_ids) / match.total
    if limits.max_share is not None and share > limits.max_share:
        return f"{total_text} {share:.0%} of the data, and '{FILE}' allows {limits.max_share:.0%}"
    return None


def one_line(text: str, option: str) -> str:
    """A reason or a role as it will stand in the ledger.

    Raises:
        ValueError: empty, long, or not printable in one line.
    """
    if not text.strip() or len(text) > LONGEST or not text.isprintable():
        raise EvidenceError(f"{option} needs 1 to {LONGEST} printable characters in one line, and no names of people")
    return text.strip()


def role(limits: Limits, text: str) -> str:
    """The role that stands behind a request.

    Raises:
        ValueError: none of those that the owner named.
    """
    name = one_line(text, "--authorised_by")
    if limits.authorised_by and name not in limits.authorised_by:
        raise EvidenceError(f"authorised_by is '{name}'; {did_you_mean(name, limits.authorised_by)}")
    return name


def protected_among(limits: Limits, rows: Mapping[str, Any]) -> list[str]:
    """Ids of the rows of a request, near-duplicates that are listed too, that say what a protected row says.

    Args:
        rows: of a `Request`.

    Raises:
        ValueError: protected rows cannot be read: nothing is removed as long as nobody can tell what they are.
    """
    from llm_forget.data.sources import load_source

    if not limits.protected:
        return []
    table = load_source(list(limits.protected), split_name=f"protected rows of '{FILE}'")
    protected = {said_digest(text) for _, _, text in records(table)}
    return [row_id for row_id, content_digest in rows["said"].items() if content_digest in protected]


def unallowed(limits: Limits, request: Request) -> list[str]:
    """Ids of protected rows that a request would remove and that nobody allowed yet."""
    rows = request.rows
    removed_ids = set(request.ids()) - set(rows.get("allowed", ()))
    return [row_id for row_id in protected_among(limits, rows) if row_id in removed_ids]


def refuse(limits: Limits, request: Request) -> None:
    """Raise ValueError where nobody stands behind a request, or it would remove protected rows that nobody allowed."""
    if limits.authorised_by and request.content["authorised_by"] not in limits.authorised_by:
        raise EvidenceError(
            f"nobody stands behind request {request.id}; give `llm-forget request run` --authorised_by with one of: "
            f"{', '.join(limits.authorised_by)}"
        )
    if protected_ids := unallowed(limits, request):
        raise EvidenceError(
            f"request {request.id} would remove {counted(len(protected_ids))} that '{FILE}' protects; `llm-forget "
            f"request show {request.id}` names them, and `llm-forget request run` takes --allow_protected REASON"
        )
