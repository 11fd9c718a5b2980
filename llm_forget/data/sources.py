"""Load rows from the sources that a recipe names, check them, and give each an id.

A source is a file, a folder, a Hub data set, ``builtin:NAME``, a mapping with the keys of `Source`, or a list of these.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llm_forget.core.errors import DataError
from llm_forget.core.registry import did_you_mean
from llm_forget.core.safe_errors import sentence
from llm_forget.data.demo_people import load_builtin
from llm_forget.data.files import DATA_SUFFIXES, SUFFIXES, read_file, read_folder, read_lines
from llm_forget.data.hub import read_hub
from llm_forget.data.normalise import RowNamer, normalise_table
from llm_forget.data.rows import (
    FIELDS,
    FORMS,
    check_unique,
    column_hint,
    derived_id,
    inner_values,
    normalise_row,
    rename_fields,
)
from llm_forget.data.tables import arrow_column, is_text_type, membership, table_of

if TYPE_CHECKING:
    import pyarrow
    from datasets import Dataset

Spec = str | Mapping[str, Any] | Sequence[Any]


@dataclass(frozen=True)
class Source:
    """A file, folder or data set, with settings that select rows from it."""

    path: str
    name: str | None = None  # configuration of a Hub data set, or file name without ending in a folder
    split: str | None = None  # of a Hub data set; default "train"
    revision: str | None = None  # commit, tag or branch of a Hub data set
    weight: float | None = None  # how often rows of this source are drawn in a mixture, relative to other sources
    fields: Mapping[str, str] | None = None  # {prompt: column, ...}; "column.key" is a key of objects in a column
    filter: Mapping[str, Any] | None = None  # {column: value or list of values}
    ids: Sequence[str] | str | None = None  # ids of the rows to use, or a text file with one id per line
    limit: int | None = None  # maximum number of selected rows; the first ones are used
    id_field: str | None = None  # column with the ids; default "id" if that column exists


def load_source(
    spec: Spec, *, split_name: str, data_path: str | None = None, fields: Mapping[str, str] | None = None
) -> Dataset:
    """Return the rows of one or several sources in the order of the data. Raise DataError if they cannot be used.

    Args:
        spec: the source or sources, as in a recipe.
        split_name: use of the rows, such as ``forget``. Every error begins with it.
        data_path: folder to read instead of the Hub: ``<data_path>/<name>.*``, or ``<data_path>/<name>/<split>.*`` if
            the split is not train. The default of ``name`` is ``split_name``.
        fields: the column of each field, e.g. ``{prompt: instruction, completion: output}``. The column ``prompt.text``
            is the key ``text`` of the objects in column ``prompt``.

    Returns:
        A table with the columns ``id``; ``prompt`` and ``completion``, ``messages`` or ``text``; ``source_index``
        (number of the row's source, from 0); and all other columns of the data.
    """
    from datasets import concatenate_datasets

    tables, wheres = [], []
    for source_index, source in enumerate(parse_spec(spec, split_name)):
        table, where = _load_one(source, source_index, split_name, data_path, fields)
        tables.append(table)
        wheres.append(where)
    try:
        rows = tables[0] if len(tables) == 1 else concatenate_datasets(tables)
    except (ValueError, TypeError):
        raise DataError(
            f"{split_name}: the sources have a column of the same name but different types; rename one with `fields`"
        ) from None
    starts = np.cumsum([0, *map(len, tables)])

    def where_all(row: int) -> str:
        part = int(np.searchsorted(starts, row, side="right")) - 1
        return wheres[part](row - int(starts[part]))

    check_unique(arrow_column(rows, "id"), where_all)
    return rows


def parse_spec(spec: Spec, split_name: str) -> list[Source]:
    """Return the sources that a recipe's value describes. Raise DataError for an unknown key or a wrong type."""
    if isinstance(spec, str):
        return [Source(path=spec)]
    if isinstance(spec, Mapping):
        return [_from_mapping(spec, split_name)]
    if isinstance(spec, Sequence) and spec and all(isinstance(part, str | Mapping) for part in spec):
        return [source for part in spec for source in parse_spec(part, split_name)]
    raise DataError(
        f"{split_name}: a source is a path, a mapping with 'path', or a list of these, not {type(spec).__name__}"
    )


def mixture_weights(spec: Spec, split_name: str) -> list[float] | None:
    """Return one weight per source, or None if no source has one. Raise DataError if only some weights are above 0."""
    weights = [source.weight for source in parse_spec(spec, split_name)]
    if all(weight is None for weight in weights):
        return None
    for number, weight in enumerate(weights, start=1):
        if weight is None or weight <= 0:
            raise DataError(f"{split_name}: source {number} needs a weight above 0, because other sources have weights")
    return [float(weight) for weight in weights if weight is not None]


def _from_mapping(spec: Mapping[str, Any], split_name: str) -> Source:
    allowed_keys = {f.name for f in fields(Source)}
    for key in spec:
        if key not in allowed_keys:
            raise DataError(f"{split_name}: a source has no key '{key}'; {did_you_mean(str(key), allowed_keys)}")
    source = Source(**spec) if "path" in spec else Source(path="", **spec)
    types: dict[str, tuple[type, ...]] = {
        **dict.fromkeys(("path", "name", "split", "revision", "id_field"), (str,)),
        **dict.fromkeys(("fields", "filter"), (Mapping,)),
        "weight": (int, float),
        "limit": (int,),
        "ids": (str, list, tuple),
    }
    for key, value in vars(source).items():
        if value is not None and (not isinstance(value, types[key]) or isinstance(value, bool)):
            allowed = " or ".join(kind.__name__ for kind in types[key])
            raise DataError(f"{split_name}: '{key}' of a source is {type(value).__name__}; allowed: {allowed}")
    if not source.path and source.name is None:
        raise DataError(f"{split_name}: a source needs a 'path'")
    if source.limit is not None and source.limit < 1:
        raise DataError(f"{split_name}: 'limit' of a source must be 1 or more, not {source.limit}")
    return source


def _load_one(
    source: Source, source_index: int, split_name: str, data_path: str | None, field_map: Mapping[str, str] | None
) -> tuple[Dataset, RowNamer]:
    from datasets import concatenate_datasets

    parts = [(f"{split_name}: {name}", table) for name, table in _read(source, split_name, data_path)]
    columns = source.fields if source.fields is not None else field_map
    tables = [_with_fields(table, columns, name) if columns else table for name, table in parts]
    try:
        table = tables[0] if len(tables) == 1 else concatenate_datasets(tables)
    except (ValueError, TypeError):
        raise DataError(f"{split_name}: the files of '{source.path}' differ in the type of a column") from None
    id_field = _id_field(source, table, parts[0][0])
    whole = parts[0][0] if len(parts) == 1 else f"{split_name}: '{source.path}'"
    chosen = _selected_rows(source, table, id_field, whole, split_name)
    starts = np.cumsum([0, *map(len, tables)])

    def where(row: int) -> str:
        """Return file name and row number (from 1) of a selected row as text for error messages."""
        line = int(chosen[row])
        part = int(np.searchsorted(starts, line, side="right")) - 1
        return f"{parts[part][0]} row {line - int(starts[part]) + 1}"

    if len(chosen) < len(table):
        table = table.select(chosen)
    return normalise_table(table, where, id_field, source_index), where


def _with_fields(table: Dataset, field_map: Mapping[str, str], where: str) -> Dataset:
    table = _with_inner_columns(table, field_map, where)
    renames = rename_fields(table.column_names, field_map, where)
    # A field map overrides columns that have the field's name, and forms with higher precedence.
    mapped = {column for columns in FORMS.values() if set(columns) & set(field_map) for column in columns}
    replaced = {field for field, column in field_map.items() if field != column}
    hidden = [c for c in table.column_names if c in FIELDS and c not in renames and (c not in mapped or c in replaced)]
    table = table.remove_columns(hidden)
    return table.rename_columns(renames) if renames else table


def _with_inner_columns(table: Dataset, field_map: Mapping[str, str], where: str) -> Dataset:
    """Add a column for each path of the field map that names a key inside objects, such as ``prompt.text``."""
    for path in dict.fromkeys(path for path in field_map.values() if isinstance(path, str)):
        heads = [column for column in table.column_names if path.startswith(f"{column}.")]
        if path not in table.column_names and heads:
            column = max(heads, key=len)
            table = table.add_column(path, inner_values(table[column][:], path, column, where))
    return table


def _read(source: Source, split_name: str, data_path: str | None) -> list[tuple[str, Dataset]]:
    path = Path(source.path).expanduser() if source.path else None
    try:
        local = source.path.startswith("builtin:") or (path is not None and path.is_file())
        if local and (source.split or source.revision or (source.name and data_path is None)):
            raise DataError(f"'{source.path}' has no name, split or revision; only data sets on the Hub do")
        if source.path.startswith("builtin:"):
            return [(source.path, table_of(load_builtin(source.path.removeprefix("builtin:")), source.path))]
        if source.name is not None and data_path is not None:
            return [_hub_file(Path(data_path).expanduser(), source.name, source.split)]
        if path is not None and path.is_dir():
            return [_named_file(path, source.name)] if source.name is not None else read_folder(path)
        if path is not None and (path.is_file() or path.suffix in SUFFIXES):
            if not path.is_file():
                raise DataError(f"file '{path}' does not exist; relative paths start at the current directory")
            return [(path.name, read_file(path))]
        if data_path is not None:
            return [_hub_file(Path(data_path).expanduser(), split_name, source.split)]
    except ValueError as error:
        raise DataError(f"{split_name}: {sentence(error)}") from None
    return [read_hub(source.path, source.name, source.split, source.revision, split_name=split_name)]


def _hub_file(folder: Path, name: str, split: str | None) -> tuple[str, Dataset]:
    """Return (file name, table) of the file in place of a Hub data set: ``<name>.*`` or ``<name>/<split>.*``."""
    return _named_file(folder, name) if split in (None, "train") else _named_file(folder / name, str(split))


def _named_file(folder: Path, name: str) -> tuple[str, Dataset]:
    for suffix in DATA_SUFFIXES:
        path = folder / f"{name}{suffix}"
        if path.is_file() and path.parent == folder:
            return path.name, read_file(path)
    names = sorted(p.stem for p in folder.glob("*") if p.suffix in DATA_SUFFIXES) if folder.is_dir() else []
    raise DataError(
        f"folder '{folder}' has no '{name}' with one of {', '.join(DATA_SUFFIXES)}; {did_you_mean(name, names)}"
    )


def _id_field(source: Source, table: Dataset, where: str) -> str | None:
    if source.id_field is not None and source.id_field not in table.column_names:
        raise DataError(
            f"{where} has no column '{source.id_field}'; {column_hint(source.id_field, table.column_names)}"
        )
    return source.id_field or ("id" if "id" in table.column_names else None)


def _selected_rows(source: Source, table: Dataset, id_field: str | None, where: str, split_name: str) -> np.ndarray:
    """Return the row numbers ``[N]`` that ``filter``, ``ids`` and ``limit`` select, in the order of the data."""
    mask = np.ones(len(table), dtype=bool)
    for column, value in (source.filter or {}).items():
        if column not in table.column_names:
            raise DataError(
                f"{where} has no column '{column}' to filter by; {column_hint(str(column), table.column_names)}"
            )
        mask &= _filter_mask(arrow_column(table, column), value, column, where)
    if not mask.any():
        raise DataError(f"{where}: the filter on {', '.join(source.filter or {})} matches none of {len(table)} rows")
    if source.ids is not None:
        mask &= _id_mask(source.ids, table, id_field, where, split_name)
        if not mask.any():
            raise DataError(f"{where}: no row satisfies both `filter` and `ids`; change one of them")
    return np.flatnonzero(mask)[: source.limit]


def _filter_mask(values: pyarrow.ChunkedArray, condition: Any, column: str, where: str) -> np.ndarray:
    allowed = list(condition) if isinstance(condition, list | tuple) else [condition]
    if any(value is None for value in allowed):
        raise DataError(f"{where}: the filter on '{column}' has an empty value; give the value to match")
    if is_text_type(values.type) and len(values) > values.null_count:
        # YAML reads 0123 as 83 and NO as false; compared with text, these would silently match nothing.
        if not all(isinstance(value, str) for value in allowed):
            raise DataError(f"{where}: '{column}' contains text, but its filter does not; write its values in quotes")
        return membership(values, allowed)
    cells = values.to_pylist()
    return np.array([any(type(cell) is type(a) and cell == a for a in allowed) for cell in cells], dtype=bool)


def _id_mask(ids: Sequence[str] | str, table: Dataset, id_field: str | None, where: str, split_name: str) -> np.ndarray:
    import pyarrow

    if isinstance(ids, str):
        if not Path(ids).is_file():
            raise DataError(f"{split_name}: '{ids}' is not a file; give a list of ids, or a text file, one id per line")
        ids = read_lines(Path(ids))
    if not all(isinstance(value, str) for value in ids):
        raise DataError(f"{split_name}: `ids` must be strings; write them in quotes, since numbers lose leading zeros")
    if id_field is None:
        numbered = enumerate(table, start=1)
        rows = ({**row, **normalise_row(row, f"{where} row {number}")} for number, row in numbered)
        table_ids = pyarrow.chunked_array([pyarrow.array((derived_id(row) for row in rows), pyarrow.string())])
    else:
        table_ids = arrow_column(table, id_field)
        if not is_text_type(table_ids.type):  # refused later, by `check_ids`, which names the row
            return np.ones(len(table), dtype=bool)
    unknown = sorted({value for value, present in zip(ids, membership(ids, table_ids), strict=True) if not present})
    if unknown or not ids:
        complaint = f"{len(unknown)} of `ids`, such as '{unknown[0]}'," if unknown else "`ids` is an empty list, which"
        raise DataError(f"{where}: {complaint} match no row; check the ids")
    return membership(table_ids, ids)
