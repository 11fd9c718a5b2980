"""Check that a JSON value has the keys and types of a record class. Errors name the file and the first wrong key."""

import functools
import re
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec

from llm_forget.core.errors import LlmForgetError
from llm_forget.core.formats._record import Record

R = TypeVar("R", bound=Record)

REASON = "it was changed, or written by another version of llm-forget"
JSON_TYPES = {
    "str": "a string", "int": "a whole number", "float": "a number", "bool": "true or false", "null": "null",
    "object": "an object", "array": "a list",
}  # fmt: skip
LONGEST_KEY = 60  # characters of a key that an error shows
MISSING, UNKNOWN = "Object missing required field", "Object contains unknown field"


def checked(
    content: Any, kind: type[R], where: str | Path, *, advice: str = REASON, error: type[LlmForgetError] | None = None
) -> R:
    """Convert a JSON value to a record. Raise ``error`` (default: ``kind.ERROR``) if the value does not fit.

    ``where`` is the file name in the error message. ``advice`` is the end of the message, such as "merge again".
    """
    error = error or kind.ERROR
    if kind.ROOT is not None:
        content = {kind.ROOT: content}
    elif isinstance(content, Mapping) and (other := _other_format(content.get("format", 1), kind)):
        raise error(f"'{where}'{other}; {advice}")
    try:
        return msgspec.convert(content, kind)
    except msgspec.ValidationError:
        fault = _first_fault(content, kind)
        raise error(f"'{where}'{_sentence(fault, kind)}; {advice}") from None


def _other_format(number: Any, kind: type[Record]) -> str | None:
    """Return the error text for a format number that this version cannot read, or None if it can read the format."""
    if type(number) is not int:
        return _sentence(_Fault([_Step("format")], _reason(number, int), int), kind)
    return None if number == kind.FORMAT else f" has format {number}, and this version reads format {kind.FORMAT}"


class _Step(NamedTuple):
    """One step of the path to a value inside JSON: a key of an object, or an index of a list."""

    key: str | int
    name_of_thing: bool = False  # whether the key is data, such as the id of a row, and not the name of a field


class _Fault(NamedTuple):
    path: list[_Step]
    reason: str  # the message of msgspec, without the path
    kind: Any  # the type that the wrong value should have


def _reason(value: Any, kind: Any) -> str:
    """Return the reason why a value is not of type ``kind``, as msgspec states it, or an empty text if it is."""
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        return str(error).partition(" - at `")[0]
    return ""


def _first_fault(value: Any, kind: Any) -> _Fault:
    """Return path, reason and required type of the first wrong value. The errors of msgspec lack keys of mappings."""
    for step, part, part_kind in _parts(value, kind):
        if _reason(part, part_kind):
            inner = _first_fault(part, part_kind)
            return inner._replace(path=[step, *inner.path])
    return _Fault([], _reason(value, kind), kind)


def _parts(value: Any, kind: Any) -> Iterator[tuple[_Step, Any, Any]]:
    """Yield (path step, value, required type) for each value inside a JSON object or list."""
    for option in _options(kind):
        origin, arguments = get_origin(option), get_args(option)
        if isinstance(value, dict) and origin is dict:
            yield from ((_Step(key, True), part, arguments[1]) for key, part in value.items())
        elif isinstance(value, list) and origin is list:
            yield from ((_Step(place), part, arguments[0]) for place, part in enumerate(value))
        elif isinstance(value, list) and origin is tuple and len(arguments) == len(value):
            yield from ((_Step(place), *pair) for place, pair in enumerate(zip(value, arguments, strict=True)))
        elif isinstance(value, dict) and isinstance(option, type) and issubclass(option, msgspec.Struct):
            hints = _types(option)
            for field in msgspec.structs.fields(option):
                if field.encode_name in value:
                    yield _Step(field.encode_name), value[field.encode_name], hints[field.name]


@functools.cache
def _types(kind: type[msgspec.Struct]) -> dict[str, Any]:
    """Return the type of each field of a class by name, including ``Annotated`` metadata."""
    return get_type_hints(kind, include_extras=True)


def _options(kind: Any) -> Iterator[Any]:
    """Yield the members of a union type, or the type itself if it is not a union, without ``Annotated`` metadata."""
    if get_origin(kind) is Annotated:
        yield from _options(get_args(kind)[0])
    elif get_origin(kind) in (Union, types.UnionType):
        for option in get_args(kind):
            yield from _options(option)
    else:
        yield kind


def _sentence(fault: _Fault, kind: type[Record]) -> str:
    """Return the part of the error message that follows the file name, such as `` lacks the key 'seed'``."""
    path = fault.path[1:] if kind.ROOT is not None else fault.path
    if fault.reason.startswith(MISSING):
        lacking = _Step(fault.reason.removeprefix(MISSING).strip(" `"))
        return f" lacks the key '{_shown([*path, lacking], kind)}'"
    if fault.reason.startswith(UNKNOWN):
        unknown = _Step(fault.reason.removeprefix(UNKNOWN).strip(" `"))
        return f" has an unknown key '{_shown([*path, unknown], kind)}'"
    subject = f": key '{_shown(path, kind)}' must be " if path else " must hold "
    return subject + _requirement(fault)


def _requirement(fault: _Fault) -> str:
    """Describe the required type and the actual one, such as ``a string, not a number``."""
    values = [value for option in _options(fault.kind) if get_origin(option) is Literal for value in get_args(option)]
    if values and fault.reason.startswith("Invalid enum value"):
        return f"one of {', '.join(map(repr, values))}"
    reason = fault.reason.removeprefix("Expected ").replace(" matching regex ", " of the form ")
    expected, _, got = reason.partition(", got ")

    def in_words(types: re.Match[str]) -> str:
        return " or ".join(JSON_TYPES.get(name, name) for name in types[1].split(" | "))

    return ", not ".join(filter(None, (re.sub(r"`([^`]*)`", in_words, part) for part in (expected, got))))


def _shown(path: list[_Step], kind: type[Record]) -> str:
    """Return a path as text: ``suites.demo.metrics.forget_rouge.ci[1]``. A key that may be a row id becomes ``*``."""
    text = ""
    for step in path:
        if isinstance(step.key, int):
            text += f"[{step.key}]"
        else:
            key = "*" if kind.NAMES_ROWS and step.name_of_thing else ascii(step.key)[1:-1][:LONGEST_KEY]
            text += f".{key}" if text else key
    return text
