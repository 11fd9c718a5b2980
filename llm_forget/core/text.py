"""Format names and numbers for people, without unprintable characters or local paths."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def model_name(name: str) -> str:
    """Return a name of a model without local folders: a Hub name unchanged, or the last part of a path."""
    path = Path(name)
    return path.resolve().name if path.exists() or path.is_absolute() or len(path.parts) > 2 else name


def shown(value: float | None) -> str:
    """Return a number as text: three decimals, or scientific notation below 0.001; ``unknown`` for None and NaN."""
    if value is None or math.isnan(value):
        return "unknown"
    return f"{value:.3f}" if abs(value) >= 0.001 or value == 0 else f"{value:.1e}"


def plain(text: str) -> str:
    """Replace unprintable characters by U+FFFD, so that an id cannot control the terminal or reorder its text."""
    return "".join(character if character.isprintable() else "\ufffd" for character in text)


def terminal() -> Console:
    """Return a rich console for standard output. If this is not a terminal, the console has 120 columns for tables."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=120)
