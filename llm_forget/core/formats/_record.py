"""`Record`, the base class of the record classes, and their registry. Each kind of JSON file has one record class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, ClassVar, TypeVar

import msgspec

from llm_forget.core.errors import LlmForgetError, RunError

R = TypeVar("R", bound="Record")

REGISTRY: dict[str, type[Record]] = {}

# Types of values with a unit or form, which the JSON Schema shows as the description of the field.
Digest = Annotated[str, msgspec.Meta(description="sha256: and 64 hex digits")]
Time = Annotated[str, msgspec.Meta(description="ISO 8601, UTC, to the second")]
Count = Annotated[int, msgspec.Meta(ge=0, description="number of things, at least 0")]
Seconds = Annotated[float, msgspec.Meta(description="seconds")]
Gibibytes = Annotated[float, msgspec.Meta(description="GiB")]
Bytes = Annotated[float, msgspec.Meta(description="bytes")]
Logits = Annotated[float, msgspec.Meta(description="difference of logits")]
Nats = Annotated[float, msgspec.Meta(description="nats per token")]
Share = Annotated[float, msgspec.Meta(description="share of the whole, 1 is all")]


class Record(msgspec.Struct, frozen=True):
    """The content of one kind of JSON file. A file may have further keys, which `update` keeps."""

    FILE: ClassVar[str]  # name of the file
    FORMAT: ClassVar[int] = 1  # written under "format"; a file without that key is in format 1
    ERROR: ClassVar[type[LlmForgetError]] = RunError  # raised if the content does not fit
    ROOT: ClassVar[str | None] = None  # for files without fixed keys: the only field, which holds the whole content
    MAX_BYTES: ClassVar[int] = 64 << 20  # a longer file is refused
    STRICT: ClassVar[bool] = True  # refuse ambiguous JSON, such as repeated keys; slow for millions of rows
    NAMES_ROWS: ClassVar[bool] = False  # if true, keys of mappings may be ids of rows, and errors do not show them


def record(file: str, **settings: Any) -> Callable[[type[R]], type[R]]:
    """Return a decorator that registers the record class of a file. ``settings`` set its class variables by name."""

    def register(kind: type[R]) -> type[R]:
        for name, value in {"file": file, **settings}.items():
            assert name.upper() in Record.__annotations__, name
            setattr(kind, name.upper(), value)
        REGISTRY[kind.__name__] = kind
        return kind

    return register


class Part(msgspec.Struct, frozen=True):
    """The base class of JSON objects inside a file."""
