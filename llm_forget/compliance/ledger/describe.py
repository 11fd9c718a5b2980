"""Summarise an event of the ledger in one line that is safe to print in a terminal."""

import re
from typing import Any

from llm_forget.compliance.ledger.chain import Event
from llm_forget.core.text import plain

FIRST = (
    "action", "request", "state", "id", "run", "base", "combination", "sources", "beneath", "splits", "answers",
    "policy",
)  # fmt: skip
QUIET = (
    "once", "records", "data", "objective", "config", "seed", "llm_forget", "finished", "about", "facts", "part",
    "files", "rows",
)  # fmt: skip


def event_summary(event: Event) -> str:
    """Return a summary of an event, such as ``run npo, base target, splits forget, 72 records, weights 5c3e...``."""
    body = event.body
    parts = [f"{key} {_value(body[key])}" for key in FIRST if _value(body.get(key))]
    if isinstance(records := body.get("records"), dict):
        counts = body.get("counts")
        rows = counts.get("rows") if isinstance(counts, dict) else body.get("rows")
        count = records.get("n") if rows is None else rows  # a record with a subject has two hashes
        parts.append(f"{_value(count)} record{'' if count == 1 else 's'}")
    rest = [key for key in body if key not in FIRST + QUIET]
    parts += [f"{key} {_value(body[key])}" for key in rest if _value(body[key])]
    return plain(", ".join(parts))


def short_digest(digest: str) -> str:
    """Return a text in which each ``sha256:`` digest is shortened to its first 12 hex digits."""
    return re.sub(r"sha256:([0-9a-f]{12})[0-9a-f]{52}", r"\1", digest)


def _value(value: Any) -> str:
    if isinstance(value, str):
        return short_digest(value)
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: ""}[value]
    if isinstance(value, int | float):
        return f"{value:,}" if isinstance(value, int) else f"{value:g}"
    if isinstance(value, list):
        return " ".join(_value(part) for part in value)
    if set(value) == {"name", "digest"}:
        return _value(value["name"])
    if value.keys() >= {"run", "scale"}:
        return f"{value['run']} x {_value(value['scale'])}"
    return "(" + ", ".join(f"{key} {_value(part)}" for key, part in value.items()) + ")"
