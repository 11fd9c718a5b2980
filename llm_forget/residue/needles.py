"""The texts that are looked for, and the forms that they may have taken."""

from __future__ import annotations

import base64
import csv
import json
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_forget.core.errors import DataError
from llm_forget.residue.match import KEY, Needle
from llm_forget.residue.transforms import fold, plain, unescape

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet", ".txt")
SHORTEST = 8  # letters and digits that a text must have to be looked for
PASSED_OVER = ("id", "role")  # ids stand in runs on purpose, roles of messages everywhere

_UNCOUNTED = {code: None for code in range(128) if not chr(code).isalnum()}


@dataclass(frozen=True)
class Sought:
    """One text of a row (1-based; of a .txt, a line), or the part of it that no known text holds."""

    row: int
    text: str
    of: int  # letters and digits of the whole text


def read_texts(path: Path, fields: Sequence[str] = ()) -> list[Sought]:
    """Every text of every row, but for its ``id``; of ``fields`` only, where some are named.

    Raises:
        ValueError: not a file of rows, or nothing in it to look for; names the line, never what stands there.
    """
    if path.suffix not in SUFFIXES or not path.is_file():
        raise DataError(f"'{path}' is no file of texts; allowed: {', '.join(SUFFIXES)}")
    found = [
        Sought(number, text, len(counted(text)))
        for number, row in enumerate(_rows(path), start=1)
        for text in dict.fromkeys(_texts(row, fields))
        if text.strip()
    ]
    if not found:
        where = f" in {', '.join(fields)}" if fields else ""
        raise DataError(f"'{path}' has no text{where}; nothing was looked for")
    return found


def _rows(path: Path) -> Iterator[Any]:
    if path.suffix == ".parquet":
        yield from _parquet_rows(path)
        return
    try:
        content = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"'{path}' is not UTF-8; save it as UTF-8") from None  # the original quotes the bytes
    if path.suffix == ".txt":
        yield from content.splitlines()
    elif path.suffix == ".csv":
        yield from csv.DictReader(content.splitlines(keepends=True))
    elif content.lstrip().startswith("["):
        yield from _json(content, path, 1)
    else:
        for number, line in enumerate(content.split("\n"), start=1):
            if line.strip():
                yield _json(line, path, number)


def _json(text: str, path: Path, line: int) -> Any:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        line += getattr(error, "lineno", 1) - 1
        raise DataError(f"'{path}' line {line} is not JSON; one object a line, or an array") from None


def _parquet_rows(path: Path) -> Iterator[Any]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(1000):
                yield from batch.to_pylist()
    except pyarrow.ArrowException:
        raise DataError(f"'{path}' is not a Parquet file; write it again") from None


def _texts(value: Any, fields: Sequence[str]) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            if key in fields or (not fields and key not in PASSED_OVER):
                yield from _texts(inner, ())
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner, fields)


def needles(texts: Sequence[Sought], window: int) -> tuple[list[Needle], list[Needle], list[int]]:
    """Forms to look for among plain bytes and in base64, and which texts are too short for any.

    ``window`` letters and digits one after the other are a find; of a shorter text it is all of them.
    """
    simple: list[Needle] = []
    encoded: list[Needle] = []
    short = []
    for number, sought in enumerate(texts):
        if len(counted(sought.text)) < SHORTEST:
            short.append(number)
            continue
        simple += _needles(number, window, _plain_forms(sought.text))
        encoded += _needles(number, window, _base64_forms(sought.text))
    return simple, encoded, short


def _needles(number: int, window: int, forms: Iterator[tuple[str, int, bytes]]) -> Iterator[Needle]:
    seen = set()
    for encoding, characters, data in forms:
        if len(data) >= KEY and data not in seen:
            seen.add(data)
            share = min(1.0, window / max(1, characters))
            yield Needle(data, number, encoding, max(KEY, -int(-len(data) * share // 1)), characters)


def _plain_forms(text: str) -> Iterator[tuple[str, int, bytes]]:
    normal = dict.fromkeys((text, *(unicodedata.normalize(form, text) for form in ("NFC", "NFD"))))
    escaped = unescape(text.encode("utf-8", "replace")).decode("utf-8", "replace")
    for form in dict.fromkeys((*normal, fold(text), text.upper(), text.title(), escaped, fold(escaped))):
        for codec in ("utf-8", "latin-1", "cp1252", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"):
            try:
                yield codec, len(counted(form)), plain(form.encode(codec))
            except UnicodeEncodeError:
                continue
        yield "cesu-8", len(counted(form)), plain(_surrogates(form))
    for form in normal:
        yield "hex", len(counted(form)), form.encode("utf-8", "replace").hex().encode()


def _base64_forms(text: str) -> Iterator[tuple[str, int, bytes]]:
    normal = dict.fromkeys((text, *(unicodedata.normalize(form, text) for form in ("NFC", "NFD"))))
    written = (json.dumps(text, ensure_ascii=ascii_only)[1:-1] for ascii_only in (False, True))
    raw = [form.encode("utf-8", "replace") for form in dict.fromkeys((*normal, *written))]
    for data in dict.fromkeys((*raw, text.encode("utf-16-le", "replace"))):
        for before in range(3):
            whole = base64.b64encode(bytes(before) + data)
            # Characters at both ends depend on the neighbours, too.
            yield "base64", len(counted(text)), whole[-(-before * 8 // 6) : (before + len(data)) * 8 // 6]


def counted(text: str) -> str:
    """The characters that matter: all but white space and ASCII punctuation."""
    return text.translate(_UNCOUNTED)


def _surrogates(text: str) -> bytes:
    """UTF-8 of the two halves of a pair, each on its own, as some programs write it."""
    units = text.encode("utf-16-be", "replace")
    halves = (int.from_bytes(units[place : place + 2], "big") for place in range(0, len(units), 2))
    return b"".join(chr(half).encode("utf-8", "surrogatepass") for half in halves)
