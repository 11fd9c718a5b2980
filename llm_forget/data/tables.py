"""Arrow tables of rows, a part at a time: in memory, or in the private folder where they are large."""

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

PART = 10_000  # rows that exist as Python objects at a time
_JSON_TYPES = {dict: "an object", list: "a list", str: "a text", int: "a number", float: "a number"}


def table_of(rows: Iterable[dict[str, Any]], name: str, *, large: bool = False) -> Dataset:
    """Rows as a table, in memory or (``large``) in the private folder; a column that a row lacks is null there.

    Raises:
        ValueError: no row, or a column with values of several types.
    """
    return stored(_parts(iter(rows), name), name, large=large)


def stored(parts: Iterable[pyarrow.Table], name: str, *, large: bool) -> Dataset:
    """Parts of a table as one table; a column may be missing or null in some of them.

    Raises:
        ValueError: no row, or a column whose type differs between parts.
    """
    import pyarrow
    from datasets import Dataset, concatenate_datasets

    try:
        if not large:
            tables = [part for part in parts if len(part)]
            if not tables:
                raise DataError(f"{name} has no rows; give at least one")
            return Dataset(pyarrow.concat_tables(tables, promote_options="permissive"))
        return concatenate_datasets([Dataset.from_file(str(file)) for file in _written(parts, name)])
    except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError):  # their own sentences quote values
        raise _mixed(name) from None


def is_text_type(kind: pyarrow.DataType) -> bool:
    """Whether a column of this type holds texts."""
    from pyarrow import types

    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def is_among(values: Sequence[str] | pyarrow.ChunkedArray, wanted: Sequence[str] | pyarrow.ChunkedArray) -> np.ndarray:
    """Whether each text is one of those wanted, ``[N]``; null never is."""
    import pyarrow
    import pyarrow.compute as pc

    def texts(given: Any) -> Any:
        columnar = isinstance(given, pyarrow.ChunkedArray)
        return given.cast(pyarrow.large_string()) if columnar else pyarrow.array(given, pyarrow.large_string())

    return np.asarray(pc.is_in(texts(values), value_set=texts(wanted), skip_nulls=True))


def arrow_column(table: Dataset, name: str) -> pyarrow.ChunkedArray:
    """One column as Arrow holds it, without making Python objects of it."""
    return table.select_columns([name]).with_format("arrow")[:][name]


def _written(parts: Iterable[pyarrow.Table], name: str) -> list[Any]:
    """Files with the parts, of one schema: where it changes a new file begins, and in the end all are put in one."""
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
    return [_rewritten(files, whole)]


def _rewritten(files: list[Any], schema: pyarrow.Schema) -> Any:
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


def _parts(rows: Iterator[dict[str, Any]], name: str) -> Iterator[pyarrow.Table]:
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
        except (TypeError, ValueError, OverflowError):  # pyarrow's own errors are subclasses; they quote the value
            raise _mixed(name) from None
        start += len(part)


def _mixed(name: str) -> ValueError:
    return DataError(f"{name} has a column whose lists or objects differ in type between rows; make them alike")


def _check_one_type(key: str, values: list[Any], name: str, start: int, kinds: dict[str, int]) -> None:
    for number, value in enumerate(values, start=start):
        if value is not None:
            kind = "a truth value" if isinstance(value, bool) else _JSON_TYPES.get(type(value), type(value).__name__)
            kinds.setdefault(kind, number)
    if len(kinds) > 1:
        found = " and ".join(f"{kind} in row {number}" for kind, number in kinds.items())
        hint = "; an id that is not a string loses leading zeros, so write ids in quotes" if key == "id" else ""
        raise DataError(f"{name}: column '{key}' is {found}; a column must be of one type{hint}")


def kind_of_json(value: Any) -> str:
    """What a JSON value is, in words."""
    return _JSON_TYPES.get(type(value), "no object")
