"""Encode values as canonical JSON for digests, and refuse JSON texts that two parsers may read differently."""

import hashlib
import json
import math
from typing import Any

from llm_forget.core.errors import DataError

MAX_BYTES = 1 << 20  # of a JSON text; those of this package are much smaller
MAX_DEPTH = 64
MAX_DIGITS = 308  # of a whole number; other parsers read it as a float, which cannot be larger


def canonical(content: Any) -> bytes:
    """Return a value as UTF-8 JSON with sorted keys and no spaces. Raise DataError if JSON has no form for it (NaN)."""
    _refuse(content, 0)
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8")


def canonical_digest(content: Any) -> str:
    """Return the SHA-256 of the canonical JSON of a value as ``sha256:`` and 64 hex digits."""
    return "sha256:" + hashlib.sha256(canonical(content)).hexdigest()


def strict_loads(text: str | bytes, max_bytes: int = MAX_BYTES) -> Any:
    """Parse a JSON text. Raise DataError if it is invalid, or if two parsers may read it differently.

    Repeated keys, NaN, 1e999, lone surrogates, deep nesting and long texts are refused. Errors quote no text.
    """
    try:
        data = text.encode("utf-8") if isinstance(text, str) else text
        if len(data) > max_bytes:
            raise DataError(f"the JSON text has {len(data):,} bytes; at most {max_bytes:,} are read")
        content = json.loads(
            data.decode(), object_pairs_hook=_unique, parse_constant=refuse_constant, parse_float=_float, parse_int=_int
        )
    except UnicodeError:
        raise DataError("the JSON text is not valid UTF-8") from None
    except json.JSONDecodeError as error:
        raise DataError(f"not valid JSON (line {error.lineno}, column {error.colno})") from None
    except RecursionError:
        raise DataError(f"the JSON text is nested more than {MAX_DEPTH} deep") from None
    _refuse(content, 0)
    return content


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise DataError("a key of the JSON text appears twice in one object")
    return found


def refuse_constant(name: str) -> Any:
    """Raise DataError for NaN, Infinity and -Infinity, which Python accepts in JSON."""
    raise DataError(f"{name} is not a JSON number")


def _float(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise DataError("a number of the JSON text is too large")
    return number


def _int(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise DataError("a number of the JSON text is too large")
    return int(digits)


def _refuse(content: Any, depth: int) -> None:
    """Raise DataError for a value that json.dumps would change, or would write in a form that other parsers refuse."""
    if depth > MAX_DEPTH:
        raise DataError(f"the JSON value is nested more than {MAX_DEPTH} deep")
    if isinstance(content, str):
        try:
            content.encode("utf-8")
        except UnicodeEncodeError:
            raise DataError("a text of the JSON value has a lone surrogate, which UTF-8 cannot hold") from None
    elif isinstance(content, dict):
        for key, value in content.items():
            if not isinstance(key, str):
                raise DataError(f"keys of a JSON object are texts, not {type(key).__name__}")
            _refuse(key, depth + 1)
            _refuse(value, depth + 1)
    elif isinstance(content, list | tuple):
        for value in content:
            _refuse(value, depth + 1)
    elif isinstance(content, float):
        if not math.isfinite(content):
            raise DataError("a number of the JSON value is not finite; JSON has no form for it")
    elif isinstance(content, int):
        if abs(content) >= 10 ** (MAX_DIGITS - 1):
            raise DataError("a number of the JSON value is too large")
    elif content is not None:
        raise DataError(f"JSON has no form for {type(content).__name__}")
