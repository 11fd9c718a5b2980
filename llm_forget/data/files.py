"""Read the rows of one local file, without guessing types and without leaving a copy.

Why not ``load_dataset("json", ...)``: its reader turns strings that look like dates into timestamps (an id
``2020-01-01`` comes back as a datetime), names no row in its errors, and copies what is to be forgotten into the Hub
cache, where nobody looks for it later.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Dataset

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet", ".txt")
DATA_SUFFIXES = SUFFIXES[:-1]
_JSON_TYPES = {dict: "an object", list: "a list", str: "a text", int: "a number", float: "a number"}


def read_file(path: Path) -> Dataset:
    """One file as a table: ``.jsonl``, ``.json`` (an array, or JSON Lines), ``.csv``, ``.parquet``, ``.txt`` (one row).

    Values of a CSV are all text. A byte order mark and Windows line ends are taken off.

    Raises:
        ValueError: not readable as what its name says; names the file and the row.
    """
    if path.suffix not in SUFFIXES:
        raise ValueError(f"'{path}' is not a data file; allowed: {', '.join(SUFFIXES)}")
    if path.suffix == ".parquet":
        return _read_parquet(path)
    if path.suffix == ".txt":
        return table_of([{"id": path.stem, "text": _decode(path)}], path.name)
    rows = list(_csv_rows(path) if path.suffix == ".csv" else _json_rows(path))
    return table_of(rows, path.name)


def read_folder(folder: Path) -> list[tuple[str, Dataset]]:
    """All data files of a folder in the order of their names, or all its ``.txt`` files; with the file names.

    Raises:
        ValueError: no such file, or both kinds (which of them is meant cannot be known).
    """
    files = sorted(p for p in folder.iterdir() if p.is_file() and p.suffix in SUFFIXES)
    kinds = {path.suffix == ".txt" for path in files}
    if not files:
        raise ValueError(f"folder '{folder}' has no data file; allowed: {', '.join(SUFFIXES)}")
    if len(kinds) > 1:
        raise ValueError(f"folder '{folder}' has both .txt and other data files; name the one that is meant")
    return [(path.name, read_file(path)) for path in files]


def read_lines(path: Path) -> list[str]:
    """Non-empty lines of a text file."""
    return [line.strip() for line in _decode(path).splitlines() if line.strip()]


def table_of(rows: list[dict[str, Any]], name: str) -> Dataset:
    """Rows as a table in memory; a column that a row lacks is null there.

    Raises:
        ValueError: no row, or a column with values of several types.
    """
    from datasets import Dataset

    if not rows:
        raise ValueError(f"{name} has no rows; give at least one")
    columns = {key: [row.get(key) for row in rows] for key in dict.fromkeys(k for row in rows for k in row)}
    if not columns:
        raise ValueError(f"{name} has rows without columns; a row needs at least one")
    for key, values in columns.items():
        _check_one_type(key, values, name)
    try:
        return Dataset.from_dict(columns)
    except (TypeError, ValueError, OverflowError):  # pyarrow's own errors are subclasses; they quote the value
        raise ValueError(
            f"{name} has a column whose lists or objects differ in type between rows; make them alike"
        ) from None


def _check_one_type(key: str, values: list[Any], name: str) -> None:
    kinds: dict[str, int] = {}
    for number, value in enumerate(values, start=1):
        if value is not None:
            kind = "a truth value" if isinstance(value, bool) else _JSON_TYPES.get(type(value), type(value).__name__)
            kinds.setdefault(kind, number)
    if len(kinds) > 1:
        found = " and ".join(f"{kind} in row {number}" for kind, number in kinds.items())
        hint = "; an id that is not a string loses leading zeros, so write ids in quotes" if key == "id" else ""
        raise ValueError(f"{name}: column '{key}' is {found}; a column must be of one type{hint}")


def _decode(path: Path) -> str:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # `from None`: the original quotes the bytes of the row.
        raise ValueError(f"{path.name} is not UTF-8 (byte {error.start}); save it as UTF-8") from None
    return text.replace("\r\n", "\n")


def _json_rows(path: Path) -> Iterator[dict[str, Any]]:
    text = _decode(path)
    if text.lstrip().startswith("["):
        yield from _array_rows(text, path.name)
        return
    number = 0
    # Not splitlines(): it also cuts at U+2028 and other characters that may stand inside a JSON string.
    for line_number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        number += 1
        yield _as_object(_parse(line, f"{path.name} line {line_number}"), f"{path.name} row {number}")


def _array_rows(text: str, name: str) -> Iterator[dict[str, Any]]:
    for number, value in enumerate(_parse(text, name), start=1):
        yield _as_object(value, f"{name} row {number}")


def _parse(text: str, where: str) -> Any:
    try:
        value = json.loads(text, object_pairs_hook=_no_repeated_keys)
        text.encode()
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError(f"{where} has a lone surrogate, which is no character; remove it") from None
    except json.JSONDecodeError as error:
        # `from None`: the original carries the whole document.
        raise ValueError(
            f"{where} is not JSON ({error.msg}, character {error.colno}); one object a line, or an array"
        ) from None
    except _RepeatedKeyError:
        raise ValueError(f"{where} has the same key twice in one object; keep one") from None
    except RecursionError:
        raise ValueError(f"{where} is nested too deeply to be read; a row needs no such depth") from None
    return value


class _RepeatedKeyError(ValueError):
    pass


def _no_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    merged = dict(pairs)
    if len(merged) < len(pairs):
        raise _RepeatedKeyError
    return merged


def _as_object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{where} is {_JSON_TYPES.get(type(value), 'no object')}; a row must be a JSON object")
    return value


def _csv_rows(path: Path) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(2**30)
    reader = csv.reader(io.StringIO(_decode(path), newline=""), strict=True)
    try:
        header = next(reader, [])
        if len(set(header)) < len(header) or "" in header:
            raise ValueError(f"{path.name} has an unnamed or repeated column in its first line; name each once")
        for number, cells in enumerate((cells for cells in reader if cells), start=1):
            if len(cells) != len(header):
                raise ValueError(
                    f"{path.name} row {number} has {len(cells)} cells, not {len(header)} as line 1; quote commas"
                )
            yield dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise ValueError(
            f"{path.name} line {reader.line_num} is not CSV ({error}); quote cells as RFC 4180 says"
        ) from None


def _read_parquet(path: Path) -> Dataset:
    import pyarrow
    import pyarrow.parquet
    from datasets import Dataset

    try:
        table = pyarrow.parquet.read_table(path)
    except PermissionError:
        raise
    except (pyarrow.ArrowInvalid, OSError):  # damage inside a file is an OSError
        raise ValueError(f"{path.name} is not a Parquet file; write it again") from None
    if not table.num_rows:
        raise ValueError(f"{path.name} has no rows; give at least one")
    return Dataset(table)
