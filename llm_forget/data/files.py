"""Read the rows of local files. Types of values are not guessed, and no copy of the rows remains.

``load_dataset`` is not used, because it converts date-like strings to timestamps and copies rows into its cache.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_forget.core.errors import DataError
from llm_forget.data.private_storage import IN_MEMORY
from llm_forget.data.tables import PART, kind_of_json, store_parts, table_of

if TYPE_CHECKING:
    import pyarrow
    from datasets import Dataset

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet", ".txt")
DATA_SUFFIXES = SUFFIXES[:-1]
_SPACE = b" \t\r\n"


def read_file(path: Path, *, size: int | None = None) -> Dataset:
    """Return the rows of a ``.jsonl``, ``.json`` (array or JSON Lines), ``.csv``, ``.parquet`` or ``.txt`` file.

    CSV values are text. A ``.txt`` file is one row. If ``size`` in bytes (default: the file's size) exceeds
    `IN_MEMORY`, the table is stored on disk. If the content does not have the format that the suffix names, raise
    DataError with file and row.
    """
    if path.suffix not in SUFFIXES:
        raise DataError(f"'{path}' is not a data file; allowed: {', '.join(SUFFIXES)}")
    if path.suffix == ".parquet":
        return _read_parquet(path, size)
    if path.suffix == ".txt":
        return table_of([{"id": path.stem, "text": _decode(path)}], path.name)
    rows = _csv_rows(path) if path.suffix == ".csv" else _json_rows(path)
    return table_of(rows, path.name, large=(size or path.stat().st_size) > IN_MEMORY)


def read_folder(folder: Path) -> list[tuple[str, Dataset]]:
    """Return (file name, table) of each data file, sorted by name. Raise DataError if there is no data file, or if
    ``.txt`` files are mixed with other data files.
    """
    files = sorted(p for p in folder.iterdir() if p.is_file() and p.suffix in SUFFIXES)
    kinds = {path.suffix == ".txt" for path in files}
    if not files:
        raise DataError(f"folder '{folder}' has no data file; allowed: {', '.join(SUFFIXES)}")
    if len(kinds) > 1:
        raise DataError(f"folder '{folder}' has both .txt and other data files; give the path of one file")
    size = sum(path.stat().st_size for path in files)
    return [(path.name, read_file(path, size=size)) for path in files]


def read_lines(path: Path) -> list[str]:
    """Return the non-empty lines of a text file, without surrounding white space."""
    return [line.strip() for line in _decode(path).splitlines() if line.strip()]


def _decode(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError:
        raise _not_utf8(path) from None  # the original error quotes bytes of the row


def _not_utf8(path: Path) -> DataError:
    """Return the error for a file that is not UTF-8, with the offset of the first invalid byte."""
    offset = 0
    with path.open("rb") as file:
        for line in file:  # no UTF-8 character contains a line feed
            try:
                line.decode()
            except UnicodeDecodeError as error:
                offset += error.start
                break
            offset += len(line)
    return DataError(f"{path.name} is not UTF-8 (byte {offset}); save it as UTF-8")


def _lines(path: Path, newline: str) -> Iterator[str]:
    """Yield the lines of a file. The byte order mark is removed, and Windows line ends become line feeds."""
    try:
        with path.open(encoding="utf-8-sig", newline=newline) as file:
            for line in file:
                yield line.replace("\r\n", "\n")
    except UnicodeDecodeError:
        raise _not_utf8(path) from None


def _json_rows(path: Path) -> Iterator[dict[str, Any]]:
    if _first_character(path) == b"[":
        yield from _array_rows(_decode(path), path.name)
        return
    number = 0
    # Not splitlines(): it also splits at U+2028 and other characters that JSON strings may contain.
    for line_number, line in enumerate(_lines(path, "\n"), start=1):
        if not line.strip():
            continue
        number += 1
        value, _ = _parse(line, 0, f"{path.name} line {line_number}", alone=True)
        yield _as_object(value, f"{path.name} row {number}")


def _first_character(path: Path) -> bytes:
    with path.open("rb") as file:
        while block := file.read(2**16).removeprefix(b"\xef\xbb\xbf"):
            if block.strip(_SPACE):
                return block.strip(_SPACE)[:1]
    return b""


def _array_rows(text: str, name: str) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSON array one by one. Parsing all at once needs many times the memory of the text."""
    position, number = _after_space(text, _after_space(text, 0) + 1), 0
    while text[position : position + 1] != "]" or number:
        value, position = _parse(text, position, name)
        number += 1
        yield _as_object(value, f"{name} row {number}")
        position = _after_space(text, position)
        if text[position : position + 1] == "]":
            break
        if text[position : position + 1] != ",":
            raise _not_json(json.JSONDecodeError("Expecting ',' delimiter", text, position), name)
        position = _after_space(text, position + 1)
    if _after_space(text, position + 1) < len(text):
        raise _not_json(json.JSONDecodeError("Extra data", text, _after_space(text, position + 1)), name)


def _after_space(text: str, position: int) -> int:
    return _SPACES.match(text, position).end()  # type: ignore[union-attr]  # always matches, also the empty string


def _parse(text: str, position: int, where: str, *, alone: bool = False) -> tuple[Any, int]:
    """Return (JSON value at ``position``, position of its end). Raise DataError for invalid JSON and, if ``alone``, for
    text after the value.
    """
    try:
        start = _after_space(text, position)
        value, end = _DECODER.raw_decode(text, start)
        if alone and _after_space(text, end) < len(text):
            raise json.JSONDecodeError("Extra data", text, _after_space(text, end))
        if _SURROGATE.search(text, start, end):
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise DataError(f"{where} has a lone surrogate, which is not a character; remove it") from None
    except json.JSONDecodeError as error:
        # `from None`: the original error contains the whole document.
        raise _not_json(error, where) from None
    except _RepeatedKeyError:
        raise DataError(f"{where} has the same key twice in one object; keep one") from None
    except RecursionError:
        raise DataError(f"{where} is nested too deeply to be read; flatten the row") from None
    return value, end


def _not_json(error: json.JSONDecodeError, where: str) -> DataError:
    return DataError(
        f"{where} is not JSON ({error.msg}, character {error.colno}); use one object per line, or an array"
    )


class _RepeatedKeyError(ValueError):
    pass


def _no_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    merged = dict(pairs)
    if len(merged) < len(pairs):
        raise _RepeatedKeyError
    return merged


_DECODER = json.JSONDecoder(object_pairs_hook=_no_repeated_keys)
_SPACES = re.compile(r"[ \t\r\n]*")
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # UTF-8 text itself contains none


def _as_object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(f"{where} is {kind_of_json(value)}; a row must be a JSON object")
    return value


def _csv_rows(path: Path) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(2**30)
    reader = csv.reader(_lines(path, ""), strict=True)
    try:
        header = next(reader, [])
        if len(set(header)) < len(header) or "" in header:
            raise DataError(f"{path.name} has an unnamed or repeated column in its first line; give each a unique name")
        for number, cells in enumerate((cells for cells in reader if cells), start=1):
            if len(cells) != len(header):
                raise DataError(f"{path.name} row {number} has {len(cells)} cells, not {len(header)}; quote commas")
            yield dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise DataError(f"{path.name} line {reader.line_num} is not CSV ({error}); quote as in RFC 4180") from None


def _read_parquet(path: Path, size: int | None) -> Dataset:
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            groups = range(file.metadata.num_row_groups)
            unpacked = sum(file.metadata.row_group(group).total_byte_size for group in groups)
            return store_parts(_batches(file, path), path.name, large=max(unpacked, size or 0) > IN_MEMORY)
    except PermissionError:
        raise
    except (pyarrow.ArrowInvalid, OSError):  # pyarrow raises OSError for damage inside a file
        raise _not_parquet(path) from None


def _batches(file: pyarrow.parquet.ParquetFile, path: Path) -> Iterator[pyarrow.Table]:
    import pyarrow

    try:
        for batch in file.iter_batches(PART):
            yield pyarrow.Table.from_batches([batch])
    except (pyarrow.ArrowInvalid, OSError):
        raise _not_parquet(path) from None


def _not_parquet(path: Path) -> DataError:
    return DataError(f"{path.name} is not a Parquet file; write it again")
