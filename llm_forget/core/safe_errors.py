"""Describe exceptions without quoting a row.

The texts of `LlmForgetError` and of file errors never quote a row, so they are shown. Other errors may quote a value
(``invalid literal for int() with base 10: '...'``), so only their class and place are shown.
"""

import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from llm_forget.core.errors import LlmForgetError

PACKAGE = Path(__file__).parents[1]
DEBUG = "LLM_FORGET_DEBUG"


def sentence(error: BaseException) -> str:
    """Return a sentence about an exception for a terminal or a log: its text if `is_safe`, else its class and place."""
    if is_safe(error):
        return str(error) or type(error).__name__
    kind = type(error)
    origin = "Python" if kind.__module__ == "builtins" else kind.__module__.partition(".")[0]
    return (
        f"{kind.__name__} ({origin}) at {_place(error)}; its text is not shown because it may quote a row, "
        f"set {DEBUG}=1 to show it"
    )


def is_safe(error: BaseException) -> bool:
    """Return whether the class of an exception guarantees that its text quotes no row."""
    return isinstance(error, LlmForgetError) or (isinstance(error, OSError) and error.errno is not None)


def install() -> None:
    """Make Python print uncaught exceptions with `report`, so that no traceback shows the text of a row."""

    def print_report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        for line in report(error):
            print(line, end="", file=sys.stderr)

    sys.excepthook = print_report


def report(error: BaseException) -> Iterator[str]:
    """Yield the lines of a traceback as Python prints it, but with `sentence` as the text of each exception."""
    chain: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in chain:
        chain.append(current)
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
    for exception in reversed(chain):
        yield "Traceback (most recent call last):\n"
        yield from traceback.format_tb(exception.__traceback__)
        yield f"{type(exception).__name__}: {sentence(exception)}\n"


def _place(error: BaseException) -> str:
    """Return file and line of the innermost call in this package or in its ``eval`` folder."""
    place = "an unknown place"
    for frame, line in traceback.walk_tb(error.__traceback__):
        file = Path(frame.f_code.co_filename)
        if file.is_relative_to(PACKAGE) or file.is_relative_to(PACKAGE.parent / "eval"):
            place = f"{file.relative_to(PACKAGE.parent)} line {line}"
    return place
