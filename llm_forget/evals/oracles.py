"""Combine the results of several oracles: models that were trained without the forget rows, each with another seed."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def mean_line(lines: Sequence[Mapping[str, Any] | None]) -> Mapping[str, Any] | None:
    """Return the mean of a line (named metric) over the oracles; None if there is no oracle.

    ``lines`` are the line's entries in results.json, one per oracle. The value and both ends of the interval are means
    over the oracles, in the unit of the line. The mean is unscored if an entry is unscored, and has no interval if an
    entry has none. ``n`` is the smallest number of scored rows. With one oracle, or if an entry is None, the first
    entry is returned.
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
    """Return the mean of the oracles' values; None if one of the values is None (unscored)."""
    return None if None in values else float(np.mean([value for value in values if value is not None]))


def oracle_range(line: Mapping[str, Any]) -> list[float] | None:
    """Return the lowest and the highest value of the oracles; None for fewer than two oracles or an unscored one."""
    values: list[Any] = line.get("oracles") or []
    return [min(values), max(values)] if len(values) > 1 and None not in values else None


def spread(line: Mapping[str, Any]) -> float | None:
    """Return the difference between the highest and the lowest value of the oracles; None if `oracle_range` is None."""
    ends = oracle_range(line)
    return None if ends is None else ends[1] - ends[0]
