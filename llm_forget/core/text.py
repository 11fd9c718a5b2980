"""Format names and numbers for people, without unprintable characters or local paths."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def model_name(name: str) -> str:
    """Return the public name of a model: a Hub name, or the last part of a local path."""
    path = Path(name)
    return path.resolve().name if path.exists() or path.is_absolute() or len(path.parts) > 2 else name


def shown(value: float | None) -> str:
    """Return a number with three decimals, or in scientific notation if its absolute value is below 0.001."""
    if value is None or math.isnan(value):
        return "unknown"
    return f"{value:.3f}" if abs(value) >= 0.001 or value == 0 else f"{value:.1e}"


def plain(text: str) -> str:
    """Replace unprintable characters by U+FFFD, so that an id cannot control the terminal or reorder its text."""
    return "".join(character if character.isprintable() else "\ufffd" for character in text)


def terminal() -> Console:
    """Return a console on standard output. In a log file it has 120 columns, so that tables are not wrapped."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=120)
