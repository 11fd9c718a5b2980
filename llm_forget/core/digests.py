"""Digests of files and of JSON values."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any


def file_digest(path: Path) -> str:
    """``sha256:`` and 64 hex digits of a file's bytes."""
    with open(path, "rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


def json_digest(content: Any) -> str:
    """Digest of a value through its canonical JSON (sorted keys, no spaces)."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)
    return "sha256:" + hashlib.sha256(text.encode("utf-8")).hexdigest()


def content_key(**parts: Any) -> str:
    """SHA-256 (hex) over the canonical JSON of everything a record depends on; ``1`` and ``"1"`` differ."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
