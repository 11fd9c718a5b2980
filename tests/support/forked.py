"""Run something in a process of its own, as a fork of this one: it does not import torch and transformers again.

A fork has its own environment, working directory, output and limits, and can be killed. What it does not have is a
fresh interpreter: a test about imports, or about variables that libraries read while they are imported, starts one.
"""

import atexit
import contextlib
import logging
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, NoReturn


def forked(
    action: Callable[[], object],
    *,
    cwd: str | Path | None = None,
    environment: Mapping[str, str] | None = None,
    timeout: float = 300,
) -> subprocess.CompletedProcess[str]:
    """Call ``action`` in a forked process; its exit code (minus the signal's number where killed) and its output.

    Args:
        environment: variables to set, beside those of this process.
        timeout: in seconds; a process that runs longer is killed, and TimeoutError is raised.
    """
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        sys.stdout.flush()
        sys.stderr.flush()
        child = os.fork()
        if child == 0:
            _become(action, cwd, environment or {}, out, err)
        code = _wait(child, timeout)
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess([getattr(action, "__name__", "action")], code, out.read(), err.read())


def command(*words: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """``llm-forget WORD...`` in a forked process, with the options of `forked`; tables are 200 characters wide."""

    def llm_forget() -> None:
        sys.argv = ["llm-forget", *map(str, words)]
        runpy.run_module("llm_forget", run_name="__main__")

    plain = {"COLUMNS": "200", "NO_COLOR": "1"}
    return forked(llm_forget, **{**options, "environment": {**plain, **(options.get("environment") or {})}})


def _wait(child: int, timeout: float) -> int:
    deadline = time.monotonic() + timeout
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise TimeoutError(f"the forked process was killed after {timeout:.0f} seconds")
        time.sleep(0.005)


def _become(
    action: Callable[[], object], cwd: str | Path | None, environment: Mapping[str, str], out: IO[str], err: IO[str]
) -> NoReturn:
    """Be a process that runs ``action`` and ends with the exit code that Python would give it."""
    code = 1
    try:
        _redirect(out, err)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        atexit._clear()  # what is to be done at the end of the other process
        os.environ.update(environment)
        if cwd is not None:
            os.chdir(cwd)
        action()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        with contextlib.suppress(BaseException):
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _redirect(out: IO[str], err: IO[str]) -> None:
    """Send what Python, its loggers and libraries in C write to two files."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(out.fileno(), 1)
    os.dup2(err.fileno(), 2)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    loggers = [logging.getLogger(), *logging.getLogger().manager.loggerDict.values()]
    for handler in [handler for logger in loggers for handler in getattr(logger, "handlers", ())]:
        if type(handler) is logging.StreamHandler:  # made while another standard error was in place
            handler.setStream(sys.stderr)
