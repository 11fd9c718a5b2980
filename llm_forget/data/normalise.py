"""Check all rows of an Arrow table, add ids, and copy ``question`` and ``answer`` to ``prompt`` and ``completion``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from llm_forget.core.errors import DataError
from llm_forget.core.progress import bar_if_long
from llm_forget.data.private_storage import map_storage
from llm_forget.data.rows import FIELDS, FORMS, check_ids, derived_id, normalise_row
from llm_forget.data.tables import PART, is_text_type

if TYPE_CHECKING:
    import pyarrow
    from datasets import Dataset

RowNamer = Callable[[int], str]  # row number -> file and row, for error messages
_FORMAT = 1  # part of the cache key; raise it when the same input gives different rows
_NOT_BLANK = r"[\pL\pN\pP]"  # such text is certainly not blank; other text is checked row by row
_PLAIN = r"^[\pL\pN\pP ]*[\pL\pN\pP][\pL\pN\pP ]*$"  # such ids have one line and are not blank


def normalise_table(table: Dataset, where: RowNamer, id_field: str | None, source_index: int) -> Dataset:
    """Check every row, and return the table with the columns ``id``, ``source_index``, ``prompt`` and ``completion``.

    The last two are added for rows with question and answer. ``id_field`` is the column with ids; without one, ids are
    digests of the content. For an invalid row, raise DataError with the name that ``where`` returns.
    """
    from datasets.fingerprint import Hasher

    with bar_if_long(len(table)):
        checked = table.with_format("arrow").map(
            _normalise,
            batched=True,
            batch_size=PART,
            with_indices=True,
            fn_kwargs={"where": where, "id_field": id_field, "source_index": source_index},
            new_fingerprint=Hasher.hash((table._fingerprint, id_field, source_index, _FORMAT)),
            desc="Checking rows",
            **map_storage(table),
        )
    checked.set_format(None)
    return checked


def _normalise(
    table: pyarrow.Table, indices: list[int], *, where: RowNamer, id_field: str | None, source_index: int
) -> pyarrow.Table:
    import pyarrow as pa

    if id_field is not None:
        _check_ids(table[id_field], indices, where, id_field)
    is_question, sound = _forms(table)
    suspect = np.flatnonzero(~sound)
    rows = table.take(pa.array(suspect)).to_pylist()
    for row, index in zip(rows, suspect, strict=True):
        normalise_row(row, where(indices[index]))
    if is_question is not None:
        for field, column in (("prompt", "question"), ("completion", "answer")):
            table = _with_column(table, field, _from_question_form(table, is_question, field, column))
    if id_field is None:
        ids = [derived_id(row) for row in table.select([c for c in FIELDS if c in table.column_names]).to_pylist()]
        table = _with_column(table, "id", pa.array(ids, pa.string()))
    else:
        table = _with_column(table, "id", table[id_field])
    return _with_column(table, "source_index", pa.array(np.full(len(table), source_index, dtype=np.int64)))


def _check_ids(ids: pyarrow.ChunkedArray, indices: list[int], where: RowNamer, field: str) -> None:
    suspect = np.flatnonzero(~_matches(ids, _PLAIN)) if is_text_type(ids.type) else np.arange(len(ids))
    check_ids([ids[i].as_py() for i in suspect], [where(indices[i]) for i in suspect], field=field)


def _forms(table: pyarrow.Table) -> tuple[np.ndarray | None, np.ndarray]:
    """Return two masks ``[N]``: (row has question/answer form, row is certainly valid).

    The first is None if the table has no such columns. Rows that are not certainly valid need a check in Python.
    """
    filled_columns = {name: ~np.asarray(table[name].is_null()) for name in table.column_names if name in FIELDS}
    none = np.zeros(len(table), dtype=bool)
    free, sound, is_question = ~none, none, None
    for form, columns in FORMS.items():  # a row has the first form whose columns it fills
        if all(column in filled_columns for column in columns):
            filled = free & np.logical_and.reduce([filled_columns[column] for column in columns])
            free = free & ~filled
            if form == "question/answer":
                is_question = filled
            if form != "messages" and all(is_text_type(table[column].type) for column in columns):
                sound = sound | (filled & _matches(table[columns[-1]], _NOT_BLANK))
    return is_question, sound


def _matches(texts: pyarrow.ChunkedArray, pattern: str) -> np.ndarray:
    import pyarrow.compute as pc

    return np.asarray(pc.fill_null(pc.match_substring_regex(texts, pattern), False))


def _from_question_form(table: pyarrow.Table, is_question: np.ndarray, field: str, column: str) -> pyarrow.ChunkedArray:
    """Return ``column`` for rows in question/answer form, and ``field`` for all others."""
    import pyarrow as pa
    import pyarrow.compute as pc

    source_values = table[column]
    if field not in table.column_names or pa.types.is_null(table[field].type):
        if is_question.all():
            return source_values
        return pc.if_else(pa.array(is_question), source_values, pa.scalar(None, source_values.type))
    if source_values.type != table[field].type and not pa.types.is_null(source_values.type):
        raise DataError(f"the columns '{column}' and '{field}' differ in type; name the ones to use with `fields`")
    return pc.if_else(pa.array(is_question), source_values.cast(table[field].type), table[field])


def _with_column(table: pyarrow.Table, name: str, values: Any) -> pyarrow.Table:
    """Return the table with a new column, or with an existing column replaced at the same position."""
    position = table.column_names.index(name) if name in table.column_names else None
    return table.append_column(name, values) if position is None else table.set_column(position, name, values)
