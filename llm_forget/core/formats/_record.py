"""The base class of record classes, one for each kind of JSON file, and the registry of these classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, ClassVar, TypeVar

import msgspec

from llm_forget.core.errors import LlmForgetError, RunError

R = TypeVar("R", bound="Record")

REGISTRY: dict[str, type[Record]] = {}

# Names of units, which the JSON Schema shows beside the type.
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
    """Content of a JSON file. The file may have further keys, which `update` keeps."""

    FILE: ClassVar[str]  # name of the file
    FORMAT: ClassVar[int] = 1  # written under "format"; a file without that key is in format 1
    ERROR: ClassVar[type[LlmForgetError]] = RunError  # raised for a file that is refused
    ROOT: ClassVar[str | None] = None  # field with the whole content, if the file has no fixed keys
    MAX_BYTES: ClassVar[int] = 64 << 20  # a longer file is refused
    STRICT: ClassVar[bool] = True  # refuse JSON with two meanings; slow for millions of rows
    NAMES_ROWS: ClassVar[bool] = False  # keys of its mappings may be ids of rows, which no error may show


def record(file: str, **settings: Any) -> Callable[[type[R]], type[R]]:
    """Return a decorator that registers the record class of ``file``; ``settings`` set class variables of `Record`."""

    def register(kind: type[R]) -> type[R]:
        for name, value in {"file": file, **settings}.items():
            assert name.upper() in Record.__annotations__, name
            setattr(kind, name.upper(), value)
        REGISTRY[kind.__name__] = kind
        return kind

    return register


class Part(msgspec.Struct, frozen=True):
    """A JSON object inside a file."""
