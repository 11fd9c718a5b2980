"""Lines of several oracles, models retrained without the forget rows that differ in their seed."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def mean_line(lines: Sequence[Mapping[str, Any] | None]) -> Mapping[str, Any] | None:
    """Return the mean of a line over the oracles; None without one.

    Value and both ends of the interval are means over the oracles, in the unit of the line. The mean is unscored if an
    oracle is, and has no interval if an oracle has none. ``n`` is the smallest number of scored rows.
    """
    if len(lines) < 2 or None in lines:
        return lines[0] if lines else None
    parts = [line for line in lines if line is not None]
    intervals = [line["ci"] for line in parts]
    return {
        "value": mean_of_oracles([line["value"] for line in parts]),
        "ci": None if None in intervals else np.mean(intervals, axis=0).tolist(),
        "n": min(line["n"] for line in parts),
        "n_unscored": max(line["n_unscored"] for line in parts),
    }


def mean_of_oracles(values: Sequence[float | None]) -> float | None:
    """Return the mean of the values of the oracles; None if one of them is unscored."""
    return None if None in values else float(np.mean([value for value in values if value is not None]))


def oracle_range(line: Mapping[str, Any]) -> list[float] | None:
    """Return the lowest and the highest value of the oracles; None for fewer than two, or if one is unscored."""
    values: list[Any] = line.get("oracles") or []
    return [min(values), max(values)] if len(values) > 1 and None not in values else None


def spread(line: Mapping[str, Any]) -> float | None:
    """Return the largest distance between two oracles on a line; None if there is no `oracle_range`."""
    ends = oracle_range(line)
    return None if ends is None else ends[1] - ends[0]
