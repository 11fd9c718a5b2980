"""Text for people: printable, and without paths of this machine."""

from __future__ import annotations

import math
from pathlib import Path


def model_name(name: str) -> str:
    """How a model is called in evidence: a Hub name as it is, of a path its end only."""
    path = Path(name)
    return path.resolve().name if path.exists() or path.is_absolute() or len(path.parts) > 2 else name


def shown(value: float | None) -> str:
    """Three decimals, or a power of ten where those would be 0."""
    if value is None or math.isnan(value):
        return "unknown"
    return f"{value:.3f}" if abs(value) >= 0.001 or value == 0 else f"{value:.1e}"


def plain(text: str) -> str:
    """Control and invisible characters replaced: an escape sequence or a change of writing direction in an id must
    neither steer a terminal nor disguise what stands beside it."""
    return "".join(character if character.isprintable() else "\ufffd" for character in text)
