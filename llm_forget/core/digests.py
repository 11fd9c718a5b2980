"""Digests of files and of JSON values."""

import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

FILE_CLOCK = 2_000_000_000  # ns; some file systems store times in steps of 2 s
_Mark = tuple[int, ...]  # device, inode, size, times of the last write and of the last change
_digests: ContextVar[dict[_Mark, str] | None] = ContextVar("digests", default=None)


@contextmanager
def each_file_hashed_once() -> Iterator[None]:
    """Cache file digests within a ``with`` block: a file is hashed again only if its inode, size or times changed.

    The digest of a file that changed less than `FILE_CLOCK` ago is not cached, because a later write could leave the
    same times.
    """
    token = _digests.set({} if _digests.get() is None else _digests.get())
    try:
        yield
    finally:
        _digests.reset(token)


def file_digest(path: Path, *, final: bool = False) -> str:
    """Return the SHA-256 of a file as ``sha256:`` and 64 hex digits. Set ``final`` if the file cannot change again."""
    digests = _digests.get()
    with open(path, "rb") as file:
        mark = _mark(file.fileno())
        if digests is not None and mark in digests:
            return digests[mark]
        digest = "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()
        settled = final or mark[-1] + FILE_CLOCK < time.time_ns()
        if digests is not None and settled and mark == _mark(file.fileno()):
            digests[mark] = digest
    return digest


def _mark(handle: int) -> _Mark:
    stat = os.fstat(handle)
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def json_digest(content: Any) -> str:
    """Return the SHA-256 of the canonical JSON of a value (sorted keys, no spaces) as ``sha256:`` and hex digits."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)
    return "sha256:" + hashlib.sha256(text.encode("utf-8")).hexdigest()


def content_key(**parts: Any) -> str:
    """Return the SHA-256 of the JSON of all arguments (64 hex digits) as a cache key. ``1`` and ``"1"`` differ."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
