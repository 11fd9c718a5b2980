"""Run something in a process of its own, as a fork of this one: it does not import torch and transformers again.

A fork has its own environment, working directory, output and limits, and can be killed. What it does not have is a
fresh interpreter: a test about imports, or about variables that libraries read while they are imported, starts one.
"""

import atexit
import contextlib
import gc
import importlib
import logging
import os
import pkgutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import IO, Any, NoReturn

Ended = subprocess.CompletedProcess[str]


def forked(
    action: Callable[[], object],
    *,
    cwd: str | Path | None = None,
    environment: Mapping[str, str] | None = None,
    timeout: float = 300,
) -> Ended:
    """Call ``action`` in a forked process; its exit code (minus the signal's number where killed) and its output.

    Args:
        environment: variables to set, beside those of this process.
        timeout: in seconds; a process that runs longer is killed, and TimeoutError is raised.
    """
    with started(action, cwd=cwd, environment=environment) as process:
        return process.wait(timeout)


def forked_world(
    processes: int, action: Callable[[int], object], *, environment: Mapping[str, str] | None = None
) -> list[Ended]:
    """Call ``action(rank)`` in forked processes that find each other as those of `accelerate launch` with cpu_2 do."""
    with socket.socket() as free, contextlib.ExitStack() as stack:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        shared = {"WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes, "MASTER_ADDR": "127.0.0.1"}
        shared |= {"MASTER_PORT": port, "ACCELERATE_USE_CPU": "true", **(environment or {})}
        running = []
        for rank in range(processes):
            variables = {key: str(value) for key, value in {**shared, "RANK": rank, "LOCAL_RANK": rank}.items()}
            running.append(stack.enter_context(started(partial(_in_world, action, rank), environment=variables)))
        return [process.wait(300) for process in running]


def _in_world(action: Callable[[int], object], rank: int) -> None:
    reset_accelerate()
    action(rank)


def reset_accelerate() -> None:
    """Let accelerate look at the variables again; it remembers a process that was one of one."""
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


class Running:
    """A forked process, and the files that its output goes to."""

    def __init__(self, pid: int, out: IO[str], err: IO[str]) -> None:
        self.pid, self._out, self._err = pid, out, err
        self._code: int | None = None

    def kill(self) -> Ended:
        os.kill(self.pid, signal.SIGKILL)
        return self.wait(60)

    def wait(self, timeout: float) -> Ended:
        deadline = time.monotonic() + timeout
        while self._code is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            if ended:
                self._code = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > deadline:
                self.kill()
                raise TimeoutError(f"the forked process was killed after {timeout:.0f} seconds")
            else:
                time.sleep(0.005)
        self._out.seek(0)
        self._err.seek(0)
        return subprocess.CompletedProcess([], self._code, self._out.read(), self._err.read())

    @property
    def ended(self) -> bool:
        return self._code is not None


@contextlib.contextmanager
def started(
    action: Callable[[], object], *, cwd: str | Path | None = None, environment: Mapping[str, str] | None = None
) -> Iterator[Running]:
    """A forked process that calls ``action``; killed on leaving the block, where it runs still."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        sys.stdout.flush()
        sys.stderr.flush()
        child = os.fork()
        if child == 0:
            become(action, cwd, environment or {}, out, err)
        process = Running(child, out, err)
        try:
            yield process
        finally:
            if not process.ended:
                process.kill()


def command(*words: object, **options: Any) -> Ended:
    """``llm-forget WORD...`` in a forked process, with the options of `forked`; tables are 200 characters wide."""
    plain = {"COLUMNS": "200", "NO_COLOR": "1"}
    return forked(llm_forget(*words), **{**options, "environment": {**plain, **(options.get("environment") or {})}})


def llm_forget(*words: object) -> Callable[[], None]:
    """What ``python -m llm_forget WORD...`` does once Python has started."""

    def run() -> None:
        from llm_forget.cli.main import main

        sys.argv = ["llm-forget", *map(str, words)]
        main()

    return run


def import_libraries() -> None:
    """Import what commands import late, so that forks have it already; what is not installed is passed over."""
    libraries = ("datasets", "peft", "trl", "scipy.stats", "matplotlib.figure", "rouge_score.rouge_scorer", "jinja2")
    for name in (*libraries, "pydantic.type_adapter"):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    import llm_forget

    for module in pkgutil.walk_packages(llm_forget.__path__, "llm_forget."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer  # noqa: F401

    sizes = {"hidden_size": 4, "intermediate_size": 4, "num_attention_heads": 1, "num_hidden_layers": 1}
    LlamaForCausalLM(LlamaConfig(vocab_size=4, **sizes))


def become(
    action: Callable[[], object], cwd: str | Path | None, environment: Mapping[str, str], out: IO[str], err: IO[str]
) -> NoReturn:
    """Be a process that runs ``action`` and ends with the exit code that Python would give it."""
    code = 1
    try:
        gc.freeze()  # a collection that walked what was there before would copy all of it
        _redirect(out, err)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        atexit._clear()  # what is to be done at the end of the other process
        sys.excepthook = sys.__excepthook__  # a command that ran in the other process has replaced it
        os.environ.update(environment)
        tempfile.tempdir = None  # TMPDIR is read again
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
            handler.stream = sys.stderr  # setStream would flush the other one, which may be closed
