"""Find the rows of the training data that a deletion request is about, by subject, id or content.

Rows that match only after normalisation (of Unicode form, case, white space and zero-width characters) are selected and
counted separately. Rows that only look similar (letters of other alphabets, nearly the same text) are listed for a
person to decide.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_forget.core.errors import EvidenceError, MissingFileError
from llm_forget.data.near_duplicates import NEAR, NearDuplicate, closure
from llm_forget.data.rows import FIELDS, column_hint, content, normalise_text

if TYPE_CHECKING:
    from datasets import Dataset

BATCH = 10_000  # rows converted to Python objects at a time
MATCH_KINDS = ("exact", "normalised", "same text")  # "same text": the row has the content of a matched row
IDS_BYTES = 1 << 26
# Letters of other alphabets that look like Latin letters. Unicode normalisation does not map them to Latin letters.
_LOOK_ALIKES = str.maketrans("авекмнорстухіјѕԁһԛԝαβεικνορτυχω", "abekmhopctyxijsdhqwabeikvoptuxw")

RowContent = tuple[str, str | None, str]  # id, subject, content


@dataclass(frozen=True)
class MatchedRows:
    """Ids and digests of the rows that a request matched, without their content."""

    kinds: dict[str, str]  # id of a matched row: one of `MATCH_KINDS`
    subjects: dict[str, str]  # id: subject of the row, if it has one
    near: tuple[NearDuplicate, ...]  # similar rows, about which a person must decide
    content_digests: dict[str, str]  # id of a matched row or near-duplicate: digest of its content
    total: int  # number of rows in the data
    digest: str  # digest of the ids and contents of all rows of the data


def resolve(
    table: Dataset,
    *,
    subject: str | None = None,
    ids: Sequence[str] | None = None,
    contents: Sequence[str] | None = None,
    field: str = "subject",
    near: float = NEAR,
) -> MatchedRows:
    """Return the rows that match ``subject``, ``ids`` or ``contents``. Give exactly one of these.

    Args:
        table: rows of `load_source`.
        contents: contents of rows, as `rows.content` returns them.
        field: column with the subject of a row.
        near: similarity threshold of near-duplicates, see `closure`.

    Raises:
        EvidenceError: no row matches, a given id or content matches no row, an id matches several rows after
            normalisation, or the column is missing or not text. The message never quotes row contents.
    """
    if field in table.column_names:
        _refuse_numbers(table, field)
    elif subject is not None:
        raise EvidenceError(f"the data has no column '{field}' with subjects; {column_hint(field, table.column_names)}")
    rows = partial(row_contents, table, field)  # every call iterates over the table
    if subject is not None:
        match_kinds, look_alikes = _by_subject(rows(), subject, field)
    elif ids is not None:
        match_kinds, look_alikes = _by_ids(rows(), ids), []
    else:
        match_kinds, look_alikes = _by_content(rows(), contents or ()), []
    return _with_duplicates(rows, match_kinds, look_alikes, near)


def read_ids(path: Path) -> list[str]:
    """Read row ids from a file: a JSON or YAML list of strings, or one id per line.

    Raises EvidenceError if the file has no ids or one is not a string, MissingFileError if the file does not exist.
    """
    from llm_forget.data.files import read_lines

    if not path.is_file():
        raise MissingFileError(f"'{path}' is not a file; give a text file with one id per line, or a JSON or YAML list")
    if path.suffix not in (".yaml", ".yml", ".json"):
        ids: Any = read_lines(path)
    else:
        ids = _read_structured(path)
        if not isinstance(ids, list):
            raise EvidenceError(f"'{path}' must be a list of ids, not {type(ids).__name__}")
        for place, value in enumerate(ids, start=1):
            if not isinstance(value, str) or not value.strip():
                kind = type(value).__name__ if value else "nothing"
                raise EvidenceError(
                    f"'{path}': id {place} is {kind}, not a string; put ids in quotes, since YAML reads 0123 as 83 and "
                    "NO as false"
                )
    if not ids:
        raise EvidenceError(f"'{path}' has no ids")
    return list(dict.fromkeys(ids))


def _read_structured(path: Path) -> Any:
    """Return the content of a JSON or YAML file. Raise EvidenceError for YAML aliases or more than `IDS_BYTES`."""
    from llm_forget.core.strict_json import strict_loads

    data = path.read_bytes()
    if len(data) > IDS_BYTES:
        raise EvidenceError(f"'{path}' has {len(data):,} bytes; the limit is {IDS_BYTES:,}")
    if path.suffix == ".json":
        try:
            return strict_loads(data, IDS_BYTES)
        except ValueError as error:
            raise EvidenceError(f"'{path}': {error}") from None
    import yaml

    try:
        text = data.decode("utf-8-sig")
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
            raise EvidenceError(f"'{path}' uses a YAML alias; write the ids out")
        return yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError):
        raise EvidenceError(f"'{path}' is not valid YAML in UTF-8; give a list of ids in quotes") from None


def look_alike_form(text: str) -> str:
    """Return a text normalised, with letters of other alphabets replaced by the Latin letters that look like them."""
    return normalise_text(text).translate(_LOOK_ALIKES)


def row_contents(table: Dataset, field: str = "subject") -> Iterator[RowContent]:
    """Yield (id, subject or None, content) for every row of a table that `load_source` returned."""
    columns = [name for name in dict.fromkeys(("id", field, *FIELDS)) if name in table.column_names]
    for batch in table.select_columns(columns).with_format("arrow").iter(batch_size=BATCH):
        for row in batch.to_pylist():
            yield row["id"], row.get(field), content(row)


def _refuse_numbers(table: Dataset, field: str) -> None:
    from llm_forget.data.tables import arrow_column, is_text_type

    column = arrow_column(table, field)
    if not is_text_type(column.type) and column.null_count < len(column):
        raise EvidenceError(
            f"the column '{field}' holds {column.type}, not text; quote subjects, since numbers lose leading zeros"
        )


def _by_subject(rows: Iterator[RowContent], subject: str, field: str) -> tuple[dict[str, str], list[NearDuplicate]]:
    if not subject.strip():
        raise EvidenceError("the subject is empty")
    normalised, look_alike = normalise_text(subject), look_alike_form(subject)
    match_kinds, look_alikes, first = {}, [], ""
    for row_id, name, _ in rows:
        if name is None:
            continue
        if name == subject or normalise_text(name) == normalised:
            match_kinds[row_id] = "exact" if name == subject else "normalised"
            first = first or row_id
        elif look_alike_form(name) == look_alike:
            look_alikes.append(NearDuplicate(row_id, "", "look-alike", 1.0))
    if not match_kinds:
        hint = f"; {row_count(len(look_alikes))} have a look-alike subject in another alphabet" if look_alikes else ""
        raise EvidenceError(f"0 rows matched: no row has this subject in its column '{field}'{hint}")
    return match_kinds, [row._replace(of=first) for row in look_alikes]


def _by_ids(rows: Iterator[RowContent], ids: Sequence[str]) -> dict[str, str]:
    requested, by_normalised = set(ids), {normalise_text(requested_id): requested_id for requested_id in ids}
    exact: set[str] = set()
    normalised: dict[str, list[str]] = {}
    for row_id, _, _ in rows:
        if row_id in requested:
            exact.add(row_id)
        elif (requested_id := by_normalised.get(normalise_text(row_id))) is not None:
            normalised.setdefault(requested_id, []).append(row_id)
    match_kinds, missing = {}, []
    for place, requested_id in enumerate(ids, start=1):
        if requested_id in exact:
            match_kinds[requested_id] = "exact"
        elif len(row_ids := normalised.get(requested_id, [])) == 1:
            match_kinds[row_ids[0]] = "normalised"
        elif row_ids:
            raise EvidenceError(f"id {place} matches {len(row_ids)} rows after normalisation; give the exact id")
        else:
            missing.append(place)
    if missing:
        raise EvidenceError(
            f"{len(missing)} of {len(ids)} ids match no row (the first is number {missing[0]} of the list), so 0 rows "
            "were selected; check the ids and the data"
        )
    return match_kinds


def _by_content(rows: Iterator[RowContent], contents: Sequence[str]) -> dict[str, str]:
    exact = {text: place for place, text in enumerate(contents, start=1)}
    normalised = {normalise_text(text): place for place, text in enumerate(contents, start=1)}
    match_kinds, matched_places = {}, set()
    for row_id, _, text in rows:
        place = exact.get(text) or normalised.get(normalise_text(text))
        if place is not None:
            match_kinds[row_id] = "exact" if text in exact else "normalised"
            matched_places.add(place)
    missing = sorted({*normalised.values()} - matched_places)  # a content that was given twice has one place
    if missing or not contents:
        raise EvidenceError(
            f"{len(missing)} of {len(contents)} given rows match no row of the data (the first is number "
            f"{min(missing, default=0)}), so 0 rows were selected; copy the rows from the data, or give their ids"
        )
    return match_kinds


def _with_duplicates(
    rows: Callable[[], Iterator[RowContent]], match_kinds: dict[str, str], look_alikes: list[NearDuplicate], near: float
) -> MatchedRows:
    """Add rows with the same content and near-duplicates to the matched rows, and return all as `MatchedRows`."""
    matched_rows = [(row_id, text) for row_id, _, text in rows() if row_id in match_kinds]
    texts = {normalise_text(text) for _, text in matched_rows}
    same = [row_id for row_id, _, text in rows() if row_id not in match_kinds and normalise_text(text) in texts]
    match_kinds = {**match_kinds, **dict.fromkeys(same, "same text")}
    near_duplicates = closure(
        matched_rows, lambda: ((row_id, text) for row_id, _, text in rows() if row_id not in match_kinds), near
    )
    look_alikes = [row for row in look_alikes if row.id not in match_kinds]
    listed = {row.id: row for row in [*near_duplicates, *look_alikes]}
    row_ids = match_kinds.keys() | listed.keys()
    subjects = {row_id: name for row_id, name, _ in rows() if name is not None and row_id in row_ids}
    digest, ids = data_digest(rows())
    content_digests = {row_id: content_digest(text) for row_id, _, text in rows() if row_id in row_ids}
    return MatchedRows(match_kinds, subjects, tuple(listed.values()), content_digests, len(ids), digest)


def data_digest(rows: Iterable[RowContent]) -> tuple[str, list[str]]:
    """Return the digest of the ids and contents of all rows in order, and the list of ids."""
    digest, ids = hashlib.sha256(), []
    for row_id, _, text in rows:
        ids.append(row_id)
        digest.update(f"{len(row_id)} {row_id} ".encode())
        digest.update(hashlib.sha256(text.encode()).digest())
    return f"sha256:{digest.hexdigest()}", ids


def content_digest(text: str) -> str:
    """Return the SHA-256 of the normalised content of a row, as hex digits."""
    return hashlib.sha256(normalise_text(text).encode()).hexdigest()


def row_count(count: int) -> str:
    """Return a number of rows as text: ``1 row``, ``2 rows``."""
    return "1 row" if count == 1 else f"{count:,} rows"
