"""Typed record classes for all JSON files of this package, and functions that read, check and write the files."""

from llm_forget.core.formats._check import checked
from llm_forget.core.formats._files import (
    encoded,
    plain,
    read,
    read_content,
    read_if_current,
    read_if_valid,
    update,
    whole_lines,
    write,
)  # fmt: skip
from llm_forget.core.formats._record import REGISTRY, Record

__all__ = [
    "REGISTRY", "Record", "checked", "encoded", "plain", "read", "read_content", "read_if_current", "read_if_valid",
    "update", "whole_lines", "write",
]  # fmt: skip
