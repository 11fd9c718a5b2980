"""A disk that fails at a chosen write of SQLite, and a process that dies there.

SQLite lets its own system calls be replaced (`sqlite3_vfs.xSetSystemCall`), so the faults are injected beneath all of
our code, where a real disk would have them.
"""

import _sqlite3
import contextlib
import ctypes
import errno
import os
import signal
from collections.abc import Iterator

import pytest

_BEFORE_XSETSYSTEMCALL = [("numbers", ctypes.c_int * 3), ("pointers", ctypes.c_void_p * 16)]


class _Vfs(ctypes.Structure):
    _fields_ = [*_BEFORE_XSETSYSTEMCALL, ("set", ctypes.c_void_p), ("get", ctypes.c_void_p), ("next", ctypes.c_void_p)]


_SET = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
_GET = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)
_INT, _LONG, _POINTER, _TEXT = ctypes.c_int, ctypes.c_int64, ctypes.c_void_p, ctypes.c_char_p
CALLS = {  # what changes a disk, with result and arguments
    "write": (ctypes.c_ssize_t, _INT, _POINTER, ctypes.c_size_t),
    "pwrite": (ctypes.c_ssize_t, _INT, _POINTER, ctypes.c_size_t, _LONG),
    "pwrite64": (ctypes.c_ssize_t, _INT, _POINTER, ctypes.c_size_t, _LONG),
    "ftruncate": (_INT, _INT, _LONG),
    "unlink": (_INT, _TEXT),
    "openDirectory": (_INT, _TEXT, _POINTER),  # to fsync it
    "open": (_INT, _TEXT, _INT, _INT),
}


@contextlib.contextmanager
def broken_disk(at: int, *, error: int = errno.ENOSPC, onwards: bool = True, kill: bool = False) -> Iterator[list[str]]:
    """Let the writing system call number ``at`` (from 0) of SQLite fail, and those after it if ``onwards``.

    ``kill``: the process is killed there instead, with half of what it was writing written. Gives the list of the calls
    made, so that a test knows when it has tried them all.
    """
    library = ctypes.CDLL(_sqlite3.__file__)
    try:
        library.sqlite3_vfs_find.restype = ctypes.c_void_p
    except AttributeError:
        pytest.skip("this Python does not show its SQLite, so no fault can be injected into it")
    place = library.sqlite3_vfs_find(None)
    vfs = _Vfs.from_address(place)
    made: list[str] = []
    before, kept = {}, []

    def instead(name: str, kind: type, original: int) -> object:
        function = kind(original)

        def call(*given: object) -> int:
            if name == "open" and not given[1] & os.O_CREAT:  # type: ignore[operator]
                return function(*given)
            number = len(made)
            made.append(name)
            if number < at or (number > at and not onwards):
                return function(*given)
            if kill:
                if "write" in name:
                    function(given[0], given[1], given[2] // 2, *given[3:])  # type: ignore[operator]
                os.kill(os.getpid(), signal.SIGKILL)
            ctypes.set_errno(error)
            return -1 if name != "openDirectory" else 14  # SQLITE_CANTOPEN

        return kind(call)

    for name, (result, *arguments) in CALLS.items():
        original = _GET(vfs.get)(place, name.encode())
        if original:
            kind = ctypes.CFUNCTYPE(result, *arguments, use_errno=True)
            replaced = instead(name, kind, original)
            before[name] = original
            kept.append(replaced)
            _SET(vfs.set)(place, name.encode(), ctypes.cast(replaced, ctypes.c_void_p))
    try:
        yield made
    finally:
        for name, original in before.items():
            _SET(vfs.set)(place, name.encode(), original)
