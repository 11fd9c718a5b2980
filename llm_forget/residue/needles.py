"""Read the texts to search for, and compute the forms (encodings and spellings) in which a file may contain them."""

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
MIN_CHARACTERS = 8  # minimum letters and digits of a search text
SKIPPED_COLUMNS = ("id", "role")  # runs contain ids by design, and every chat contains roles

_UNCOUNTED = {code: None for code in range(128) if not chr(code).isalnum()}


@dataclass(frozen=True)
class SearchText:
    """A text of a row, or a part of this text that no known text contains."""

    row: int  # number of the row from 1 (in a .txt file: the line)
    text: str
    of: int  # number of letters and digits in the whole text


def read_texts(path: Path, fields: Sequence[str] = ()) -> list[SearchText]:
    """Return the texts of all rows in the columns ``fields`` (default: all columns except ``id`` and ``role``).

    Raise DataError if the format is not supported or there is no text. Errors name a line, but do not quote it.
    """
    if path.suffix not in SUFFIXES or not path.is_file():
        raise DataError(f"'{path}' is not a file of texts; allowed: {', '.join(SUFFIXES)}")
    texts = [
        SearchText(number, text, len(countable(text)))
        for number, row in enumerate(_rows(path), start=1)
        for text in dict.fromkeys(_texts(row, fields))
        if text.strip()
    ]
    if not texts:
        where = f" in {', '.join(fields)}" if fields else ""
        raise DataError(f"'{path}' has no text{where}; give a file with texts to search for")
    return texts


def _rows(path: Path) -> Iterator[Any]:
    if path.suffix == ".parquet":
        yield from _parquet_rows(path)
        return
    try:
        content = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"'{path}' is not UTF-8; save it as UTF-8") from None  # the original error quotes the bytes
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
        raise DataError(f"'{path}' line {line} is not JSON; use one object per line, or an array") from None


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
            if key in fields or (not fields and key not in SKIPPED_COLUMNS):
                yield from _texts(inner, ())
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner, fields)


def needles(texts: Sequence[SearchText], window: int) -> tuple[list[Needle], list[Needle], list[int]]:
    """Return (needles for plain bytes, needles for base64, indices of texts that are too short to search for).

    A match needs ``window`` consecutive letters and digits. A shorter text must match completely.
    """
    simple: list[Needle] = []
    encoded: list[Needle] = []
    short = []
    for number, text in enumerate(texts):
        if len(countable(text.text)) < MIN_CHARACTERS:
            short.append(number)
            continue
        simple += _needles(number, window, _plain_forms(text.text))
        encoded += _needles(number, window, _base64_forms(text.text))
    return simple, encoded, short


def _needles(number: int, window: int, forms: Iterator[tuple[str, int, bytes]]) -> Iterator[Needle]:
    used = set()
    for encoding, characters, data in forms:
        if len(data) >= KEY and data not in used:
            used.add(data)
            share = min(1.0, window / max(1, characters))
            yield Needle(data, number, encoding, max(KEY, -int(-len(data) * share // 1)), characters)


def _plain_forms(text: str) -> Iterator[tuple[str, int, bytes]]:
    normal = dict.fromkeys((text, *(unicodedata.normalize(form, text) for form in ("NFC", "NFD"))))
    escaped = unescape(text.encode("utf-8", "replace")).decode("utf-8", "replace")
    for form in dict.fromkeys((*normal, fold(text), text.upper(), text.title(), escaped, fold(escaped))):
        for codec in ("utf-8", "latin-1", "cp1252", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"):
            try:
                yield codec, len(countable(form)), plain(form.encode(codec))
            except UnicodeEncodeError:
                continue
        yield "cesu-8", len(countable(form)), plain(_cesu8(form))
    for form in normal:
        yield "hex", len(countable(form)), form.encode("utf-8", "replace").hex().encode()


def _base64_forms(text: str) -> Iterator[tuple[str, int, bytes]]:
    normal = dict.fromkeys((text, *(unicodedata.normalize(form, text) for form in ("NFC", "NFD"))))
    written = (json.dumps(text, ensure_ascii=ascii_only)[1:-1] for ascii_only in (False, True))
    raw = [form.encode("utf-8", "replace") for form in dict.fromkeys((*normal, *written))]
    for data in dict.fromkeys((*raw, text.encode("utf-16-le", "replace"))):
        for before in range(3):
            whole = base64.b64encode(bytes(before) + data)
            # Cut off base64 characters at both ends, because they also depend on neighbouring bytes.
            yield "base64", len(countable(text)), whole[-(-before * 8 // 6) : (before + len(data)) * 8 // 6]


def countable(text: str) -> str:
    """Return the characters that count towards a text's length: all except white space and ASCII punctuation."""
    return text.translate(_UNCOUNTED)


def _cesu8(text: str) -> bytes:
    """Encode a text as CESU-8, which encodes the two halves of a surrogate pair separately."""
    units = text.encode("utf-16-be", "replace")
    halves = (int.from_bytes(units[start : start + 2], "big") for start in range(0, len(units), 2))
    return b"".join(chr(half).encode("utf-8", "surrogatepass") for half in halves)
