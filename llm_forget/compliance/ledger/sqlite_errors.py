"""Translate SQLite errors (full disk, damaged file, missing permission) into exceptions of this package."""

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
_NOT_WRITABLE = (
    "the evidence in '{}' is not writable for you; change its permissions, or choose another folder with --evidence"
)


@contextlib.contextmanager
def translate_sqlite_errors(folder: Path) -> Iterator[None]:
    """Translate SQLite errors within a ``with`` block that reads or writes the evidence in ``folder``.

    Raises:
        OSError: no space is left (errno ENOSPC); nothing was added.
        FileSystemError: the disk failed; nothing was added.
        NoPermissionError: the folder or a file in it is not writable.
        EvidenceBroken: a file is damaged or is not a database.
        EvidenceError: another process has held the write lock for too long.
    """
    try:
        yield
    except sqlite3.Error as error:
        raise _translated(error, folder) from error
    except PermissionError as error:
        if error.filename is None or not Path(os.fsdecode(error.filename)).is_relative_to(folder):
            raise  # about another file, such as one that the caller reads records from
        raise NoPermissionError(_NOT_WRITABLE.format(folder)) from error


def is_damage(error: sqlite3.Error) -> bool:
    """Return whether an error reports that the content of a file is damaged, and not only that access failed."""
    return _code(error) not in (*_DISK, *_REFUSED, *_BUSY)


def _code(error: sqlite3.Error) -> int:
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF  # the higher bits are the extended code


def _translated(error: sqlite3.Error, folder: Path) -> Exception:
    code = _code(error)
    if code == sqlite3.SQLITE_FULL:
        return OSError(errno.ENOSPC, f"no space is left for the evidence in '{folder}'; nothing was added")
    if code == sqlite3.SQLITE_IOERR or (code == sqlite3.SQLITE_CANTOPEN and os.access(folder, os.W_OK | os.X_OK)):
        return FileSystemError(f"the disk under '{folder}' could not be written or read ({error}); nothing was added")
    if code in _REFUSED:
        return NoPermissionError(_NOT_WRITABLE.format(folder))
    if code in _BUSY:
        return EvidenceError(
            f"another process has been writing the evidence in '{folder}' for minutes; wait or stop it"
        )
    return EvidenceBroken(f"the evidence in '{folder}' is damaged: {error}; restore it from a copy")
