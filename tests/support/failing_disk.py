"""Disks that fail, and processes that are killed, at a chosen call of those by which Python changes files."""

import builtins
import contextlib
import errno
import io
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest


@contextlib.contextmanager
def failing(at: int, *, kill: bool = False, onwards: bool = False) -> Iterator[list[str]]:
    """Let call number ``at`` (from 0) of those that change files fail, as on a full disk; gives the calls made.

    ``kill``: the process is killed there instead. ``onwards``: the disk stays full.
    """
    made: list[str] = []

    def counted(name: str, original: Any) -> Any:
        def call(*given: Any, **more: Any) -> Any:
            if name == "open" and not set("wax") & set(str(more.get("mode", given[1] if len(given) > 1 else "r"))):
                return original(*given, **more)
            made.append(name)
            if len(made) == at + 1 and kill:
                os.kill(os.getpid(), signal.SIGKILL)
            if len(made) == at + 1 or (onwards and len(made) > at and name != "unlink"):
                raise OSError(errno.ENOSPC, "no space is left")
            return original(*given, **more)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for module, names in (
            (os, ("fsync", "replace", "rename", "unlink", "mkdir")),
            (builtins, ("open",)),
            (io, ("open",)),
        ):
            for name in names:
                patch.setattr(module, name, counted(name, getattr(module, name)))
        yield made


def killed(at: int, action: Callable[[], object]) -> bool:
    """Do something in a process that is killed at call number ``at`` of those that change files; whether it was."""
    child = os.fork()
    if child == 0:
        with failing(at, kill=True), contextlib.suppress(BaseException):
            action()
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def changes(action: Callable[[], object], disk: Callable[[int], AbstractContextManager[list[str]]] = failing) -> int:
    """Number of calls by which ``action`` changes files, as ``disk`` counts them; nothing fails."""
    with disk(sys.maxsize) as made:
        action()
    return len(made)
