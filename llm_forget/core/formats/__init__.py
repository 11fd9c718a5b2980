"""Typed records for all JSON files of this package, and the functions that read and write them.

A record class says who writes the file, what each key means and in which unit. Most files have no key ``format``: they
are in format 1, and a later format will add the key. `schemas.schema` gives the JSON Schema of a class.
"""

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
