"""Parse and check the keys and values of a sweep's grid, and format them as options and folder names."""

import contextlib
import numbers
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from llm_forget.core.digests import json_digest
from llm_forget.core.errors import ConfigError
from llm_forget.core.registry import did_you_mean

ALIASES = {"lr": "learning_rate"}


def read_grid(grid_words: Sequence[str], words: Sequence[str]) -> tuple[dict[str, list[Any]], list[str]]:
    """Return (grid of all ``KEY=VALUE,VALUE`` words, ``--key value`` options in ``words``)."""
    axes: list[str] = list(grid_words)
    options: list[str] = []
    after_key = False
    for word in words:
        (options if word.startswith("--") or after_key else axes).append(word)
        after_key = word.startswith("--") and "=" not in word
    grid: dict[str, list[Any]] = {}
    for axis in axes:
        key, equals, text = axis.partition("=")
        if not equals or not key:
            raise ConfigError(f"'{axis}' is not an axis of a grid; write KEY=VALUE,VALUE, as in lr=1e-5,5e-5")
        if key in grid:
            raise ConfigError(f"grid key '{key}' is given twice; write all its values after one")
        grid[key] = _values(key, text)
    return grid, options


def _values(key: str, text: str) -> list[Any]:
    """Parse comma-separated values: numbers, true and false, mappings and lists. Any other value is text."""
    try:
        as_text, typed = yaml.load(f"[{text}]", Loader=yaml.BaseLoader), yaml.safe_load(f"[{text}]")
    except yaml.YAMLError:
        raise ConfigError(f"grid key '{key}' has values that cannot be read; write KEY=VALUE,VALUE") from None
    return [_scalar(word) if isinstance(word, str) else value for word, value in zip(as_text, typed, strict=True)]


def _scalar(word: str) -> Any:
    if word in ("true", "false"):
        return word == "true"
    for kind in (int, float):  # YAML itself reads 1e-5 as text
        with contextlib.suppress(ValueError):
            return kind(word)
    return word


def checked_axes(grid: Mapping[str, Sequence[Any]], allowed: set[str], control: set[str]) -> dict[str, list[Any]]:
    """Return the values of a grid by full key, with aliases such as ``lr`` resolved.

    Raise ConfigError if the grid is empty, or if a key is not in ``allowed``, is in ``control`` (the keys that do not
    change the trained adapter), is repeated, or has no values.
    """
    axes: dict[str, list[Any]] = {}
    for name, values in grid.items():
        key = ALIASES.get(name, name.replace("-", "_"))
        root = key.partition(".")[0]
        if root not in allowed:
            hint = did_you_mean(root, {*allowed, *ALIASES})
            raise ConfigError(
                f"grid key '{name}' is not a key of a recipe; {hint} (a parameter of a method is method_args.NAME)"
            )
        if root in control:
            raise ConfigError(f"grid key '{name}' does not change the trained adapter; give it as an option")
        if key in axes:
            raise ConfigError(f"grid key '{key}' is given twice; write all its values after one")
        if isinstance(values, str) or not values or any(value is None for value in values):
            raise ConfigError(f"grid key '{name}' needs a list of values, none of them empty")
        axes[key] = [_plain(value) for value in values]
    if not axes:
        raise ConfigError("the grid is empty; give keys and values, e.g. --grid lr=1e-5,5e-5")
    return axes


def _plain(value: Any) -> Any:
    """Return a value with numpy numbers and paths converted to types of YAML and JSON."""
    if isinstance(value, bool | Path):
        return str(value) if isinstance(value, Path) else value
    if isinstance(value, numbers.Real):
        return int(value) if isinstance(value, numbers.Integral) else float(value)
    return value


def short_names(axes: Mapping[str, Any]) -> dict[str, str]:
    """Return the short name of each key: its last part or, if two keys have the same last part, the full key."""
    last = [key.rpartition(".")[2] for key in axes]
    return {key: short if last.count(short) == 1 else key for key, short in zip(axes, last, strict=True)}


def as_name(value: Any) -> str:
    """Format a value for a folder name. Safe text is unchanged; other text keeps its safe characters and a digest."""
    if isinstance(value, Mapping | Sequence) and not isinstance(value, str):
        return json_digest(value).removeprefix("sha256:")[:8]
    text = str(value).lower() if isinstance(value, bool) else str(value)
    safe = re.sub(r"[^A-Za-z0-9.+-]+", "-", text)[:40].strip("-.")
    is_number = isinstance(value, int | float)
    return text if is_number or (safe == text and safe) else f"{safe}-{json_digest(text)[7:15]}".lstrip("-")


def as_option(key: str, value: Any) -> str:
    """Format a value for the command line. Text is unchanged; other types and values of dotted keys become YAML."""
    if isinstance(value, str) and "." not in key:
        return value
    return yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("...\n").strip()
