"""What SQLite says when a disk is full or a file damaged, as the errors of this package."""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from llm_forget.core.errors import EvidenceBroken, EvidenceError, FileSystemError, NoPermissionError

_REFUSED = (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH)
_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_DISK = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)
_MAY_NOT = (
    "the evidence in '{}' may not be written by you; give yourself the right, or name another folder by --evidence"
)


@contextlib.contextmanager
def in_sentences(folder: Path) -> Iterator[None]:
    """Errors of SQLite about the evidence in ``folder``.

    Raises:
        OSError: no space (its errno says so), or the disk failed; nothing was added.
        PermissionError: the folder or a file in it may not be written.
        EvidenceBroken: a file is damaged or no database of ours.
        ValueError: another process has been writing for too long.
    """
    try:
        yield
    except sqlite3.Error as error:
        raise _sentence(error, folder) from error
    except PermissionError as error:
        if error.filename is None or not Path(os.fsdecode(error.filename)).is_relative_to(folder):
            raise  # of a file that somebody reads records from
        raise NoPermissionError(_MAY_NOT.format(folder)) from error


def damaged(error: sqlite3.Error) -> bool:
    """Whether it speaks of what the file holds, not of whether it could be reached."""
    return _code(error) not in (*_DISK, *_REFUSED, *_BUSY)


def _code(error: sqlite3.Error) -> int:
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF  # the higher bits say where it happened


def _sentence(error: sqlite3.Error, folder: Path) -> Exception:
    code = _code(error)
    if code == sqlite3.SQLITE_FULL:
        return OSError(errno.ENOSPC, f"no space is left for the evidence in '{folder}'; nothing was added")
    if code == sqlite3.SQLITE_IOERR or (code == sqlite3.SQLITE_CANTOPEN and os.access(folder, os.W_OK | os.X_OK)):
        return FileSystemError(f"the disk under '{folder}' could not be written or read ({error}); nothing was added")
    if code in _REFUSED:
        return NoPermissionError(_MAY_NOT.format(folder))
    if code in _BUSY:
        return EvidenceError(
            f"another process has been writing the evidence in '{folder}' for minutes; wait or stop it"
        )
    return EvidenceBroken(f"the evidence in '{folder}' is damaged: {error}; restore it from a copy")
