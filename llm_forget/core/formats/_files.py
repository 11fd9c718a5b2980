"""Read and write the JSON files of this package."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from llm_forget.core.errors import LlmForgetError
from llm_forget.core.files import write_atomic
from llm_forget.core.formats._check import REASON, checked
from llm_forget.core.formats._record import Record
from llm_forget.core.strict_json import refuse_constant, strict_loads

R = TypeVar("R", bound=Record)


def read(path: Path, kind: type[R], *, advice: str = REASON, error: type[LlmForgetError] | None = None) -> R:
    """Return the content of a file as a record. ``advice`` and ``error`` are passed to `checked`."""
    return checked(_loaded(path, kind, advice, error), kind, path, advice=advice, error=error)


def read_content(
    path: Path, kind: type[Record], *, advice: str = REASON, error: type[LlmForgetError] | None = None
) -> Any:
    """Check a file as `read` does, and return its JSON value, including keys that are not fields of ``kind``."""
    content = _loaded(path, kind, advice, error)
    checked(content, kind, path, advice=advice, error=error)
    return content


def read_if_current(path: Path, kind: type[Record], *, advice: str = REASON) -> Any:
    """Return the JSON value of a file like `read_content`, or None if the file is missing or has another format."""
    if not path.is_file():
        return None
    content = _loaded(path, kind, advice, None)
    if isinstance(content, Mapping) and content.get("format", 1) != kind.FORMAT:
        return None
    checked(content, kind, path, advice=advice)
    return content


def read_if_valid(path: Path, kind: type[R]) -> R | None:
    """Return the content of a file as a record, or None if the file is missing, invalid, or still being written."""
    try:
        return read(path, kind)
    except (OSError, ValueError):
        return None


def whole_lines(lines: Iterable[bytes], kind: type[Record] | None = None) -> Iterator[Any]:
    """Yield the JSON object of each valid line. Skip other lines, such as the incomplete last line after a crash."""
    for line in lines:
        try:
            content = json.loads(line)
            if kind is not None:
                checked(content, kind, kind.FILE)
        except ValueError:
            continue
        if isinstance(content, dict):
            yield content


def write(
    path: Path, content: Record | Mapping[str, Any], kind: type[Record] | None = None, *, private: bool = False
) -> None:
    """Write a record, or a JSON value that fits the record class ``kind``, with `write_atomic`.

    Raise ``kind.ERROR`` and write nothing if the value does not fit the class.
    """
    if kind is None:
        assert isinstance(content, Record)
        kind = type(content)
    text = encoded(content)
    checked(json.loads(text), kind, path, advice="nothing was written")
    write_atomic(path, text, private=private)


def update(path: Path, kind: type[R], **changes: Any) -> R:
    """Change some keys of a file and return the new record. Keys that are not fields of ``kind`` remain."""
    write(path, {**read_content(path, kind), **changes}, kind)
    return read(path, kind)


def encoded(content: Any) -> str:
    """Return a record or JSON value as indented JSON, without sorting keys. Raise ValueError for NaN."""
    return json.dumps(plain(content), indent=2, ensure_ascii=False, allow_nan=False, default=str) + "\n"


def plain(content: Any) -> Any:
    """Return a record as a JSON value. Return any other value unchanged."""
    if not isinstance(content, Record):
        return content
    value = msgspec.to_builtins(content)
    return value[content.ROOT] if content.ROOT is not None else value


def _loaded(path: Path, kind: type[Record], advice: str, error: type[LlmForgetError] | None) -> Any:
    error, data = error or kind.ERROR, path.read_bytes()
    try:
        if kind.STRICT:
            return strict_loads(data, kind.MAX_BYTES)
        return json.loads(data.decode("utf-8"), parse_constant=refuse_constant)
    except UnicodeDecodeError:
        raise error(f"'{path}' cannot be read: it is not UTF-8 text; {advice}") from None
    except json.JSONDecodeError as fault:
        raise error(f"'{path}' cannot be read: not valid JSON (line {fault.lineno}); {advice}") from None
    except LlmForgetError as fault:
        raise error(f"'{path}' cannot be read: {fault}; {advice}") from None
