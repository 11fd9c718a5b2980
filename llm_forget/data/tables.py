"""Build Arrow tables of rows in parts: in memory, or in files of the private folder if they are large."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from llm_forget.core.errors import DataError
from llm_forget.data.private_storage import scratch_file

if TYPE_CHECKING:
    import pyarrow
    from datasets import Dataset

PART = 10_000  # maximum number of rows that exist as Python objects at the same time
_JSON_TYPES = {dict: "an object", list: "a list", str: "a text", int: "a number", float: "a number"}


def table_of(rows: Iterable[dict[str, Any]], name: str, *, large: bool = False) -> Dataset:
    """Return rows as a table, on disk if ``large``. Raise DataError if there are no rows or a column mixes types."""
    return store_parts(_row_parts(iter(rows), name), name, large=large)


def store_parts(parts: Iterable[pyarrow.Table], name: str, *, large: bool) -> Dataset:
    """Combine tables into one, on disk if ``large``. Raise DataError if there are no rows or a column mixes types."""
    import pyarrow
    from datasets import Dataset, concatenate_datasets

    try:
        if not large:
            tables = [part for part in parts if len(part)]
            if not tables:
                raise DataError(f"{name} has no rows; give at least one")
            return Dataset(pyarrow.concat_tables(tables, promote_options="permissive"))
        return concatenate_datasets([Dataset.from_file(str(file)) for file in _write_parts(parts, name)])
    except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError):  # the messages of pyarrow quote values
        raise _mixed_types_error(name) from None


def is_text_type(kind: pyarrow.DataType) -> bool:
    """Return whether a column of this type contains text."""
    from pyarrow import types

    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def membership(
    values: Sequence[str] | pyarrow.ChunkedArray, allowed: Sequence[str] | pyarrow.ChunkedArray
) -> np.ndarray:
    """Return a mask ``[N]`` that is True for values that are in ``allowed``, and False for null values."""
    import pyarrow
    import pyarrow.compute as pc

    def texts(source: Any) -> Any:
        columnar = isinstance(source, pyarrow.ChunkedArray)
        return source.cast(pyarrow.large_string()) if columnar else pyarrow.array(source, pyarrow.large_string())

    return np.asarray(pc.is_in(texts(values), value_set=texts(allowed), skip_nulls=True))


def arrow_column(table: Dataset, name: str) -> pyarrow.ChunkedArray:
    """Return one column as an Arrow array, without conversion to Python objects."""
    return table.select_columns([name]).with_format("arrow")[:][name]


def _write_parts(parts: Iterable[pyarrow.Table], name: str) -> list[Any]:
    """Write the parts to files, a new one whenever the schema changes. Merge them, and return a list with one path."""
    import pyarrow

    files: list[Any] = []
    schemas: list[pyarrow.Schema] = []
    writer = None
    for part in parts:
        if not len(part):
            continue
        if writer is None or part.schema != schemas[-1]:
            if writer is not None:
                writer.close()
            files.append(scratch_file())
            schemas.append(part.schema)
            writer = pyarrow.ipc.new_stream(str(files[-1]), part.schema)
        writer.write_table(part)
    if writer is None:
        raise DataError(f"{name} has no rows; give at least one")
    writer.close()
    if len(files) == 1:
        return files
    whole = pyarrow.unify_schemas(schemas, promote_options="permissive")
    return [_merge_files(files, whole)]


def _merge_files(files: list[Any], schema: pyarrow.Schema) -> Any:
    import pyarrow

    target = scratch_file()
    with pyarrow.ipc.new_stream(str(target), schema) as writer:
        for file in files:
            with pyarrow.memory_map(str(file)) as source, pyarrow.ipc.open_stream(source) as reader:
                for batch in reader:
                    tables = [schema.empty_table(), pyarrow.Table.from_batches([batch])]
                    writer.write_table(pyarrow.concat_tables(tables, promote_options="permissive"))
            file.unlink()
    return target


def _row_parts(rows: Iterator[dict[str, Any]], name: str) -> Iterator[pyarrow.Table]:
    import pyarrow

    kinds: dict[str, dict[str, int]] = {}  # column -> type -> first row, counted from 1
    start = 1
    while part := list(islice(rows, PART)):
        columns = {key: [row.get(key) for row in part] for key in dict.fromkeys(k for row in part for k in row)}
        if not columns:
            raise DataError(f"{name} has rows without columns; a row needs at least one")
        for key, values in columns.items():
            _check_one_type(key, values, name, start, kinds.setdefault(key, {}))
        try:
            yield pyarrow.table(columns)
        except (TypeError, ValueError, OverflowError):  # errors of pyarrow are subclasses; they quote values
            raise _mixed_types_error(name) from None
        start += len(part)


def _mixed_types_error(name: str) -> DataError:
    return DataError(f"{name} has a column whose lists or objects differ in type between rows; use one type")


def _check_one_type(key: str, values: list[Any], name: str, start: int, kinds: dict[str, int]) -> None:
    for number, value in enumerate(values, start=start):
        if value is not None:
            kind = "a truth value" if isinstance(value, bool) else _JSON_TYPES.get(type(value), type(value).__name__)
            kinds.setdefault(kind, number)
    if len(kinds) > 1:
        type_list = " and ".join(f"{kind} in row {number}" for kind, number in kinds.items())
        hint = "; an id that is not a string loses leading zeros, so write ids in quotes" if key == "id" else ""
        raise DataError(f"{name}: column '{key}' is {type_list}; a column must have one type{hint}")


def kind_of_json(value: Any) -> str:
    """Return the type of a JSON value in words, such as ``a list``."""
    return _JSON_TYPES.get(type(value), "no object")
