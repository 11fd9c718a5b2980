"""The base class of every file that this package writes, and the registry of these classes."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import msgspec

from llm_forget.core.errors import LlmForgetError, RunError

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
    """Content of one file. Keys that a class does not name are allowed, and kept by `update`.

    ``FILE`` is the file's name, ``FORMAT`` the number of the format that this version writes. The number stands in the
    file under ``FORMAT_KEY``; a file without that key is in format 1.
    """

    FILE: ClassVar[str] = ""
    FORMAT: ClassVar[int] = 1
    ERROR: ClassVar[type[LlmForgetError]] = RunError  # that a file is refused with
    FORMAT_KEY: ClassVar[str] = "format"
    ROOT: ClassVar[str | None] = None  # the one field that is the whole file, where its keys are names of things
    MAX_BYTES: ClassVar[int] = 64 << 20  # a longer file is refused
    STRICT: ClassVar[bool] = True  # refuse JSON with two meanings; slow for millions of rows
    NAMES_ROWS: ClassVar[bool] = False  # keys of its mappings may be ids of rows, which no error may show

    def __init_subclass__(cls, **settings: Any) -> None:
        super().__init_subclass__(**settings)
        if cls.FILE:
            REGISTRY[cls.__name__] = cls


class Part(msgspec.Struct, frozen=True):
    """An object inside a file."""
