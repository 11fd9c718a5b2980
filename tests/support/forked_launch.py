"""accelerate's and torch's launchers in a fork, and the processes that they start as forks of that one.

The launcher's own code decides how many processes there are, with which variables, and what becomes of them when one
dies. The command lines of their ancestors would be those of pytest, so the package is told what they would be.
"""

import importlib
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler

from llm_forget.core import launch
from tests.support.forked import Ended, become, forked, reset_accelerate

WORLD = (launch.WORLD_SIZE, launch.USE_CPU, "WORLD_SIZE", "RANK", "LOCAL_RANK")
POPEN = subprocess.Popen
SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)  # the launcher handles them


def launched(launcher: str, *words: object, environment: Mapping[str, str] | None = None) -> Ended:
    """``python -m LAUNCHER WORD...``, where the words name a script, or a module with ``-m``."""
    return forked(partial(_launch, launcher, [str(word) for word in words], environment or {}), environment=environment)


def _launch(launcher: str, words: list[str], environment: Mapping[str, str]) -> None:
    for name in {*WORLD} - {*environment}:
        os.environ.pop(name, None)
    reset_accelerate()
    subprocess.Popen = subprocess_handler.Popen = ForkedPython  # type: ignore[misc, assignment]
    launch._ancestors = lambda: [[sys.executable, "-m", launcher, *words]]
    sys.argv = [launcher, *words]
    importlib.import_module(launcher).main()


class ForkedPython:
    """In place of ``subprocess.Popen``: runs a script or module in a fork; with what launchers use of a process."""

    def __init__(self, args: Sequence[str], env: Mapping[str, str], start_new_session: bool = False, **_: Any) -> None:
        self.args = args
        self.returncode: int | None = None
        executable, *words = args
        assert executable == sys.executable
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            if start_new_session:
                os.setsid()
            for number in SIGNALS:
                signal.signal(number, signal.SIG_DFL)
            become(partial(_run, words, env), None, {}, os.fdopen(1, "w"), os.fdopen(2, "w"))

    def poll(self) -> int | None:
        if self.returncode is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if ended else None
        return self.returncode

    def wait(self, timeout: float = 300) -> int:
        deadline = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(self.args, timeout)
            time.sleep(0.005)
        return code


def _run(words: list[str], environment: Mapping[str, str]) -> None:
    subprocess.Popen = POPEN  # type: ignore[misc]
    os.environ.clear()
    os.environ.update(environment)
    words = [word for word in words if word != "-u"]
    if words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")
