"""Which rows of the training data a deletion request is about: by subject, by id or by what the rows say.

A name typed by somebody else is rarely the same string: composed and decomposed letters, case, zero-width characters
and white space are told apart by ``==``. Rows that match only after normalising are taken and counted apart; rows that
merely look alike (other alphabets, nearly the same text) are listed, since only a person can decide about them.
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

PART = 10_000  # rows that exist as Python objects at a time
HOWS = ("exact", "normalised", "same text")  # how a row came to be matched; the last: by what a matched row says
IDS_BYTES = 1 << 26
# Letters of other alphabets that are drawn like these: every normal form keeps them apart.
_DRAWN_AS = str.maketrans("авекмнорстухіјѕԁһԛԝαβεικνορτυχω", "abekmhopctyxijsdhqwabeikvoptuxw")

Record = tuple[str, str | None, str]  # id, subject, what it says


@dataclass(frozen=True)
class Match:
    """What a request resolved to. Ids only; nothing that a row says."""

    how: dict[str, str]  # id of a matched row -> one of `HOWS`
    subjects: dict[str, str]  # id -> subject, of rows that have one
    near: tuple[NearDuplicate, ...]  # rows that a person must decide about
    said: dict[str, str]  # id of each of both -> digest of what it says
    total: int  # rows of the data
    digest: str  # of ids and contents of all rows


def resolve(
    table: Dataset,
    *,
    subject: str | None = None,
    ids: Sequence[str] | None = None,
    said: Sequence[str] | None = None,
    field: str = "subject",
    near: float = NEAR,
) -> Match:
    """Find the rows that are asked for by exactly one of ``subject``, ``ids`` and ``said``.

    Args:
        table: rows of `load_source`.
        subject: rows whose column ``field`` holds it.
        ids: ids of rows; one that is no id as it stands may be one after normalising.
        said: what rows say, as `content` gives it.
        field: column with the subject of a row.
        near: see `closure`.

    Raises:
        ValueError: nothing matches, something asked for matches no row, an id matches several after normalising, or the
            column is missing or holds no texts. Names ids and places, never what rows say.
    """
    if field in table.column_names:
        _refuse_numbers(table, field)
    elif subject is not None:
        raise EvidenceError(
            f"the data have no column '{field}' to find a subject by; {column_hint(field, table.column_names)}"
        )
    rows = partial(records, table, field)  # a pass over the table at every call
    if subject is not None:
        match_kinds, look_alikes = _by_subject(rows(), subject, field)
    elif ids is not None:
        match_kinds, look_alikes = _by_ids(rows(), ids), []
    else:
        match_kinds, look_alikes = _by_content(rows(), said or ()), []
    return _completed(rows, match_kinds, look_alikes, near)


def read_ids(path: Path) -> list[str]:
    """Ids of a file: JSON or YAML with a list of texts, otherwise one id a line.

    Raises:
        ValueError: no ids, or one that is no text; names its place.
        FileNotFoundError: no such file.
    """
    from llm_forget.data.files import read_lines

    if not path.is_file():
        raise MissingFileError(
            f"'{path}' is no file with ids; give a text file with one id a line, or a JSON or YAML list"
        )
    if path.suffix not in (".yaml", ".yml", ".json"):
        ids: Any = read_lines(path)
    else:
        ids = _listed(path)
        if not isinstance(ids, list):
            raise EvidenceError(f"'{path}' must be a list of ids, not {type(ids).__name__}")
        for place, value in enumerate(ids, start=1):
            if not isinstance(value, str) or not value.strip():
                kind = type(value).__name__ if value else "nothing"
                raise EvidenceError(
                    f"'{path}': id {place} is {kind}, not a text; write ids in quotes, since YAML reads 0123 as 83 and "
                    "NO as false"
                )
    if not ids:
        raise EvidenceError(f"'{path}' holds no ids; nothing was asked for")
    return list(dict.fromkeys(ids))


def _listed(path: Path) -> Any:
    from llm_forget.core.strict_json import strict_loads

    data = path.read_bytes()
    if len(data) > IDS_BYTES:
        raise EvidenceError(f"'{path}' has {len(data):,} bytes; at most {IDS_BYTES:,} are read")
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


def drawn_alike(text: str) -> str:
    """Normalised, and letters of other alphabets replaced by the Latin ones that look the same."""
    return normalise_text(text).translate(_DRAWN_AS)


def records(table: Dataset, field: str = "subject") -> Iterator[Record]:
    """Id, subject and content of every row of `load_source`."""
    columns = [name for name in dict.fromkeys(("id", field, *FIELDS)) if name in table.column_names]
    for part in table.select_columns(columns).with_format("arrow").iter(batch_size=PART):
        for row in part.to_pylist():
            yield row["id"], row.get(field), content(row)


def _refuse_numbers(table: Dataset, field: str) -> None:
    from llm_forget.data.tables import arrow_column, is_text_type

    column = arrow_column(table, field)
    if not is_text_type(column.type) and column.null_count < len(column):
        raise EvidenceError(
            f"the column '{field}' holds {column.type}, not texts; write subjects in quotes, since numbers lose their "
            "leading zeros"
        )


def _by_subject(rows: Iterator[Record], subject: str, field: str) -> tuple[dict[str, str], list[NearDuplicate]]:
    if not subject.strip():
        raise EvidenceError("the subject is empty; nothing was asked for")
    plain, drawn = normalise_text(subject), drawn_alike(subject)
    match_kinds, look_alikes, first = {}, [], ""
    for row_id, name, _ in rows:
        if name is None:
            continue
        if name == subject or normalise_text(name) == plain:
            match_kinds[row_id] = "exact" if name == subject else "normalised"
            first = first or row_id
        elif drawn_alike(name) == drawn:
            look_alikes.append(NearDuplicate(row_id, "", "look-alike", 1.0))
    if not match_kinds:
        hint = (
            f"; {counted(len(look_alikes))} have a subject that looks the same in other letters: name it as it is"
            if look_alikes
            else ""
        )
        raise EvidenceError(
            f"no row has this subject in its column '{field}': 0 rows matched, nothing was asked for{hint}"
        )
    return match_kinds, [row._replace(of=first) for row in look_alikes]


def _by_ids(rows: Iterator[Record], ids: Sequence[str]) -> dict[str, str]:
    id_set, folded = set(ids), {normalise_text(row_id_text): row_id_text for row_id_text in ids}
    exact_rows: dict[str, list[str]] = {row_id_text: [] for row_id_text in ids}
    normalised_rows: dict[str, list[str]] = {}
    for row_id, _, _ in rows:
        if row_id in id_set:
            exact_rows[row_id].append(row_id)
        elif (requested_id := folded.get(normalise_text(row_id))) is not None:
            normalised_rows.setdefault(requested_id, []).append(row_id)
    match_kinds = {}
    missing = []
    for place, requested_id in enumerate(ids, start=1):
        if exact_rows[requested_id]:
            match_kinds[requested_id] = "exact"
        elif len(others := normalised_rows.get(requested_id, [])) == 1:
            match_kinds[others[0]] = "normalised"
        elif others:
            raise EvidenceError(
                f"id {place} of those asked for is that of {len(others)} rows after normalising; give it as it is"
            )
        else:
            missing.append(place)
    if missing:
        raise EvidenceError(
            f"{len(missing)} of {len(ids)} ids asked for match no row, the first is number {missing[0]} of the list; "
            "0 rows were taken, check the ids and the data"
        )
    return match_kinds


def _by_content(rows: Iterator[Record], contents: Sequence[str]) -> dict[str, str]:
    exact = {text: place for place, text in enumerate(contents, start=1)}
    plain = {normalise_text(text): place for place, text in enumerate(contents, start=1)}
    match_kinds, matched_places = {}, set()
    for row_id, _, text in rows:
        place = exact.get(text) or plain.get(normalise_text(text))
        if place is not None:
            match_kinds[row_id] = "exact" if text in exact else "normalised"
            matched_places.add(place)
    # Rows given twice have one place.
    missing = sorted({*plain.values()} - matched_places)
    if missing or not contents:
        raise EvidenceError(
            f"{len(missing)} of {len(contents)} rows given match none of the data, the first is number "
            f"{min(missing, default=0)}; 0 rows were taken: give the rows as they stand in the data, or their ids"
        )
    return match_kinds


def _completed(
    rows: Callable[[], Iterator[Record]], match_kinds: dict[str, str], look_alikes: list[NearDuplicate], near: float
) -> Match:
    """Rows that say what a matched row says, near-duplicates, and what all the data are."""
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
    digest, ids = census(rows())
    content_digests = {row_id: said_digest(text) for row_id, _, text in rows() if row_id in row_ids}
    return Match(match_kinds, subjects, tuple(listed.values()), content_digests, len(ids), digest)


def census(rows: Iterable[Record]) -> tuple[str, list[str]]:
    """Digest of ids and contents of all rows, in their order, and the ids."""
    digest, ids = hashlib.sha256(), []
    for row_id, _, text in rows:
        ids.append(row_id)
        digest.update(f"{len(row_id)} {row_id} ".encode())
        digest.update(hashlib.sha256(text.encode()).digest())
    return f"sha256:{digest.hexdigest()}", ids


def said_digest(text: str) -> str:
    """Digest of what a row says, after normalising."""
    return hashlib.sha256(normalise_text(text).encode()).hexdigest()


def counted(count: int) -> str:
    """``1 row``, ``2 rows``."""
    return "1 row" if count == 1 else f"{count:,} rows"
