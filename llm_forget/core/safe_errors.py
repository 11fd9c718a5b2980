"""What may be said of an exception without quoting a row.

Our own sentences, raised by a `raise` in this package, name files, rows and ids. Words of libraries, and of Python
itself, may quote what they were given (``invalid literal for int() with base 10: '...'``): where code of ours that
handles rows was at work, they are withheld.
"""

from __future__ import annotations

import dis
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

PACKAGE = Path(__file__).parents[1]
HANDLES_ROWS = (
    "data",
    "evals",
    "attacks",
    "compliance",
    "publish",
    "report",
    "residue",
    "_shipped",
)  # parts of this package, and files it gives to others
QUOTING = "Original Traceback"  # of a worker process, whose words torch and multiprocessing pass on
DEBUG = "LLM_FORGET_DEBUG"


def sentence(error: BaseException) -> str:
    """An exception in one sentence, for a terminal or a log."""
    if may_be_quoted(error):
        return str(error) or type(error).__name__
    kind = type(error)
    origin = "Python" if kind.__module__ == "builtins" else kind.__module__.partition(".")[0]
    return (
        f"{kind.__name__} ({origin}) at {_place(error)}; its words may quote a row and are not shown, "
        f"{DEBUG}=1 shows them"
    )


def may_be_quoted(error: BaseException) -> bool:
    """Whether the words of an exception cannot hold the text of a row."""
    frames = list(_frames(error.__traceback__))
    ours = [(frame, place) for frame, place in enumerate(frames) if _part(place) is not None]
    if not ours or (isinstance(error, OSError) and error.errno is not None):
        return QUOTING not in str(error)
    last, deepest = ours[-1]
    if last == len(frames) - 1 and _raises(deepest):
        return True
    return _part(deepest) not in HANDLES_ROWS and QUOTING not in str(error)


def install() -> None:
    """Let no exception that nobody expected end the process with the text of a row on the terminal."""

    def say(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        for line in report(error):
            print(line, end="", file=sys.stderr)

    sys.excepthook = say


def report(error: BaseException) -> Iterator[str]:
    """A traceback as Python prints it, each exception with `sentence` for its words; lines of code hold no rows."""
    chain: list[BaseException] = []
    now: BaseException | None = error
    while now is not None and now not in chain:
        chain.append(now)
        now = now.__cause__ or (None if now.__suppress_context__ else now.__context__)
    for one in reversed(chain):
        yield "Traceback (most recent call last):\n"
        yield from traceback.format_tb(one.__traceback__)
        yield f"{type(one).__name__}: {sentence(one)}\n"


def _frames(trace: TracebackType | None) -> Iterator[TracebackType]:
    while trace is not None:
        yield trace
        trace = trace.tb_next


def _part(place: TracebackType) -> str | None:
    """The part of this package that a frame is in, as ``data`` or ``trainer``; None outside."""
    file = Path(place.tb_frame.f_code.co_filename)
    if file.is_relative_to(PACKAGE):
        return file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    # The tasks of lm-eval lie beside the package in a checkout, in it once it is installed.
    return "_shipped" if file.is_relative_to(PACKAGE.parent / "eval") else None


def _raises(place: TracebackType) -> bool:
    """Whether a frame was left by a `raise` of its own, not by something that Python does."""
    code = place.tb_frame.f_code.co_code
    return 0 <= place.tb_lasti < len(code) and dis.opname[code[place.tb_lasti]] == "RAISE_VARARGS"


def _place(error: BaseException) -> str:
    ours = [place for place in _frames(error.__traceback__) if _part(place) is not None]
    if not ours:
        return "an unknown place"
    file = Path(ours[-1].tb_frame.f_code.co_filename)
    return f"{file.relative_to(PACKAGE.parent)} line {ours[-1].tb_lineno}"
