"""Limits of deletion requests. The owner of an evidence folder writes them to its ``limits.yaml``::

    protected: [safety.jsonl, {path: data.jsonl, ids: keep.txt}]   # rows that a request removes only with a reason
    max_share: 0.2                           # share of a data set that its open requests may remove together
    max_rows: 1000                           # number of rows that all open requests may remove together
    authorised_by: [privacy office, legal]   # roles, one of which must authorise a request before it is run or closed

``protected`` lists data sources, as in a recipe. A row is protected if its normalised content equals that of a row in
these sources, regardless of its id. The evidence holds no copy of these rows. Every permission to remove protected rows
is a ledger event.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from llm_forget.compliance.requests.files import Request
from llm_forget.compliance.requests.matching import MatchedRows, content_digest, row_contents, row_count
from llm_forget.core.errors import EvidenceError
from llm_forget.core.registry import did_you_mean

FILE = "limits.yaml"
LONGEST = 500  # characters of a reason or a role


@dataclass(frozen=True)
class Limits:
    """The content of limits.yaml. Without values, nothing is limited."""

    protected: tuple[Any, ...] = ()
    max_share: float | None = None
    max_rows: int | None = None
    authorised_by: tuple[str, ...] = ()


def read(evidence: Path) -> Limits:
    """Return the limits in limits.yaml. Raise EvidenceError for invalid YAML, an unknown key or an invalid value."""
    import yaml

    path = evidence / FILE
    if not path.is_file():
        return Limits()
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        raise EvidenceError(f"'{path}' is not valid YAML in UTF-8; correct it") from None
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
        raise EvidenceError(f"'{path}': max_share is {share!r}; give a share above 0 and at most 1")
    if rows is not None and (not isinstance(rows, int) or isinstance(rows, bool) or rows < 1):
        raise EvidenceError(f"'{path}': max_rows is {rows!r}; give a whole number, 1 or more")
    if not all(isinstance(role, str) and role.strip() for role in content["authorised_by"]):
        raise EvidenceError(f"'{path}': authorised_by must be a list of roles, such as [privacy office]")
    if not all(isinstance(source, str | dict) for source in content["protected"]):
        raise EvidenceError(f"'{path}': protected must be a list of sources, such as [safety.jsonl]")
    return Limits(**content)


def exceeded_quota(limits: Limits, match: MatchedRows, open_requests: Iterable[Request]) -> str | None:
    """Return an error text about the quota that a new request and all open ones exceed together, or None.

    Near-duplicates are counted as well, because a person may include them later.
    """
    row_ids = {*match.kinds, *(entry.id for entry in match.near)}
    all_rows = len(row_ids)
    for request in open_requests:
        rows = request.rows
        ids = {*rows["how"], *(entry["id"] for entry in rows["near"])}
        all_rows += len(ids)
        if request.content["data"]["digest"] == match.digest:
            row_ids.update(ids)
    total_text = "open requests, with their near-duplicates, would remove"
    if limits.max_rows is not None and all_rows > limits.max_rows:
        return f"{total_text} {row_count(all_rows)}, and '{FILE}' allows {limits.max_rows:,}"
    share = len(row_ids) / match.total
    if limits.max_share is not None and share > limits.max_share:
        return f"{total_text} {share:.0%} of the data, and '{FILE}' allows {limits.max_share:.0%}"
    return None


def one_line(text: str, option: str) -> str:
    """Return a stripped reason or role. Raise EvidenceError if it is empty, too long, or not one printable line."""
    if not text.strip() or len(text) > LONGEST or not text.isprintable():
        raise EvidenceError(f"{option} needs 1 to {LONGEST} printable characters in one line, and no names of people")
    return text.strip()


def check_role(limits: Limits, text: str) -> str:
    """Return the stripped role that authorises a request. Raise EvidenceError if limits.yaml does not list it."""
    name = one_line(text, "--authorised_by")
    if limits.authorised_by and name not in limits.authorised_by:
        raise EvidenceError(f"authorised_by is '{name}'; {did_you_mean(name, limits.authorised_by)}")
    return name


def protected_among(limits: Limits, rows: Mapping[str, Any]) -> list[str]:
    """Return the ids of the protected rows among the rows and near-duplicates in ``rows``, the content of rows.json.

    Raises DataError or MissingFileError if the protected rows cannot be read.
    """
    from llm_forget.data.sources import load_source

    if not limits.protected:
        return []
    table = load_source(list(limits.protected), split_name=f"protected rows of '{FILE}'")
    protected = {content_digest(text) for _, _, text in row_contents(table)}
    return [row_id for row_id, digest in rows["said"].items() if digest in protected]


def unallowed(limits: Limits, request: Request) -> list[str]:
    """Return the ids of the protected rows that a request would remove without permission."""
    rows = request.rows
    removed_ids = set(request.ids()) - set(rows.get("allowed", ()))
    return [row_id for row_id in protected_among(limits, rows) if row_id in removed_ids]


def enforce(limits: Limits, request: Request) -> None:
    """Raise EvidenceError if a request is not authorised, or would remove protected rows without permission."""
    if limits.authorised_by and request.content["authorised_by"] not in limits.authorised_by:
        raise EvidenceError(
            f"request {request.id} is not authorised; give `llm-forget request run` --authorised_by with one of: "
            f"{', '.join(limits.authorised_by)}"
        )
    if protected_ids := unallowed(limits, request):
        raise EvidenceError(
            f"request {request.id} would remove {row_count(len(protected_ids))} that '{FILE}' protects; `llm-forget "
            f"request show {request.id}` lists them, and `llm-forget request run --allow_protected REASON` allows it"
        )
