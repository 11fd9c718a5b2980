"""Every row of a table checked, given an id, and question and answer called prompt and completion.

Columns are looked at as Arrow holds them; only a row that may be at fault is made a Python object and checked by
`rows.py`, whose sentences name it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from llm_forget.core.errors import DataError
from llm_forget.core.progress import bar_if_long
from llm_forget.data.private_storage import storage
from llm_forget.data.rows import FIELDS, FORMS, check_ids, derived_id, normalise_row
from llm_forget.data.tables import PART, is_text_type

if TYPE_CHECKING:
    import pyarrow
    from datasets import Dataset

Where = Callable[[int], str]  # how errors name the row at a place
_FORMAT = 1  # raise when the same rows would come out otherwise: they are found in the cache by it
_SAYS_SOMETHING = r"[\pL\pN\pP]"  # surely not blank; what lacks it is looked at
_PLAIN = r"^[\pL\pN\pP ]*[\pL\pN\pP][\pL\pN\pP ]*$"  # of ids, neither blank nor of several lines


def normalise_table(table: Dataset, where: Where, id_field: str | None, place: int) -> Dataset:
    """Check every row and add the columns that all later steps rely on.

    Raises:
        ValueError: the first row, by ``where``, that is refused.
    """
    from datasets.fingerprint import Hasher

    with bar_if_long(len(table)):
        found = table.with_format("arrow").map(
            _normalise,
            batched=True,
            batch_size=PART,
            with_indices=True,
            fn_kwargs={"where": where, "id_field": id_field, "place": place},
            new_fingerprint=Hasher.hash((table._fingerprint, id_field, place, _FORMAT)),
            desc="Checking rows",
            **storage(table),
        )
    found.set_format(None)
    return found


def _normalise(
    table: pyarrow.Table, indices: list[int], *, where: Where, id_field: str | None, place: int
) -> pyarrow.Table:
    import pyarrow as pa

    if id_field is not None:
        _check_ids(table[id_field], indices, where, id_field)
    asked, sound = _forms(table)
    suspect = np.flatnonzero(~sound)
    rows = table.take(pa.array(suspect)).to_pylist()
    for row, index in zip(rows, suspect, strict=True):
        normalise_row(row, where(indices[index]))
    if asked is not None:
        for field, column in (("prompt", "question"), ("completion", "answer")):
            table = _put(table, field, _where_asked(table, asked, field, column))
    if id_field is None:
        ids = [derived_id(row) for row in table.select([c for c in FIELDS if c in table.column_names]).to_pylist()]
        table = _put(table, "id", pa.array(ids, pa.string()))
    else:
        table = _put(table, "id", table[id_field])
    return _put(table, "source_index", pa.array(np.full(len(table), place, dtype=np.int64)))


def _check_ids(ids: pyarrow.ChunkedArray, indices: list[int], where: Where, field: str) -> None:
    suspect = np.flatnonzero(~_matches(ids, _PLAIN)) if is_text_type(ids.type) else np.arange(len(ids))
    check_ids([ids[i].as_py() for i in suspect], [where(indices[i]) for i in suspect], field=field)


def _forms(table: pyarrow.Table) -> tuple[np.ndarray | None, np.ndarray]:
    """Which rows ``[N]`` are question and answer (None: the table has no such columns), and which are surely sound."""
    there = {name: ~np.asarray(table[name].is_null()) for name in table.column_names if name in FIELDS}
    none = np.zeros(len(table), dtype=bool)
    free, sound, asked = ~none, none, None
    for form, columns in FORMS.items():  # a row has the first form that it fills
        if all(column in there for column in columns):
            filled = free & np.logical_and.reduce([there[column] for column in columns])
            free = free & ~filled
            if form == "question/answer":
                asked = filled
            if form != "messages" and all(is_text_type(table[column].type) for column in columns):
                sound = sound | (filled & _matches(table[columns[-1]], _SAYS_SOMETHING))
    return asked, sound


def _matches(texts: pyarrow.ChunkedArray, pattern: str) -> np.ndarray:
    import pyarrow.compute as pc

    return np.asarray(pc.fill_null(pc.match_substring_regex(texts, pattern), False))


def _where_asked(table: pyarrow.Table, asked: np.ndarray, field: str, column: str) -> pyarrow.ChunkedArray:
    """The column of a question (or answer) where a row has that form, elsewhere what the row has in ``field``."""
    import pyarrow as pa
    import pyarrow.compute as pc

    given = table[column]
    if field not in table.column_names or pa.types.is_null(table[field].type):
        return pc.if_else(pa.array(asked), given, pa.scalar(None, given.type)) if not asked.all() else given
    if given.type != table[field].type and not pa.types.is_null(given.type):
        raise DataError(f"the columns '{column}' and '{field}' differ in type; name the ones to use with `fields`")
    return pc.if_else(pa.array(asked), given.cast(table[field].type), table[field])


def _put(table: pyarrow.Table, name: str, values: Any) -> pyarrow.Table:
    """The table with a column added, or replaced in its place."""
    place = table.column_names.index(name) if name in table.column_names else None
    return table.append_column(name, values) if place is None else table.set_column(place, name, values)
