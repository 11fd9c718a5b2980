"""The arithmetic of the charts: pure functions of numbers per row and of results."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from llm_forget.evals.stats import Rows, scored

# Metrics that do not say how well was forgotten: whether answers are language has no upper limit and would decide the
# mean alone, and an attack with the model before at hand finds the rows of the oracle as well.
NOT_FORGETTING = ("repetition", "silence", "generated_perplexity", "membership_two_models")
UTILITIES = ("model_utility", "utility", "retain_probability")  # the first that a suite has


def ecdf(values: Rows) -> tuple[Rows, Rows]:
    """Scored values in order and the share of rows at or below each, both ``[n]``."""
    x = np.sort(scored(values))
    return x, np.arange(1, len(x) + 1) / max(1, len(x))


def quantiles(values: Rows, shares: Sequence[float]) -> list[float]:
    """The smallest scored value that at least each share of rows is at or below: what `ecdf` reads off."""
    known = scored(values)
    if not len(known):
        return [math.nan] * len(shares)
    return [float(q) for q in np.quantile(known, list(shares), method="inverted_cdf")]


def roc(members: Rows, nonmembers: Rows) -> tuple[Rows, Rows]:
    """False and true positive rate of "score at least t" for every t from infinity down, both ``[t]``.

    From (0, 0) to (1, 1); the area under it, with straight lines between equal scores, is `stats.auc`.
    """
    one, two = np.sort(scored(members)), np.sort(scored(nonmembers))
    thresholds = np.unique(np.concatenate([one, two]))[::-1]
    rates = [
        np.concatenate([[0], len(side) - np.searchsorted(side, thresholds, side="left")]) / max(1, len(side))
        for side in (two, one)
    ]
    return rates[0], rates[1]


def forget_distance(metrics: Mapping[str, Any]) -> float | None:
    """How far the unlearned model is from the oracle: 0 is the oracle, 1 the model before or further; no unit.

    The mean of |unlearned - oracle| / |before - oracle|, each at most 1, over the lines with goal ``match_oracle`` on
    which the model before can be told from the oracle, that is, whose intervals do not overlap: the others had nothing
    to forget, and would divide by noise. Left out are lines of `NOT_FORGETTING`. None when there is no such line.
    """
    distances = []
    for name, line in metrics.items():
        before, oracle = line.get("before"), line.get("oracle")
        if line["goal"] != "match_oracle" or line.get("metric", name) in NOT_FORGETTING or not before or not oracle:
            continue
        known = [line["value"], before["value"], oracle["value"]]
        if None in known or _overlap(before, oracle):
            continue
        distances.append(min(1.0, abs(known[0] - known[2]) / abs(known[1] - known[2])))
    return float(np.mean(distances)) if distances else None


def _overlap(one: Mapping[str, Any], two: Mapping[str, Any]) -> bool:
    (low, high), (least, most) = (side["ci"] or [side["value"]] * 2 for side in (one, two))
    return low <= most and least <= high


def utility_line(metrics: Mapping[str, Any]) -> str | None:
    """Name of the line that says what was kept: the first of `UTILITIES` that the suite has."""
    return next((name for name in UTILITIES if name in metrics), None)


def pareto(points: Sequence[tuple[float | None, float | None]]) -> list[bool]:
    """Which points no other one beats: none is at most as far (first number) and at least as useful (second), and
    better in one of the two. A point with an unknown number is never marked. Equal points are marked together.
    """
    known = [(x, y) for x, y in points if x is not None and y is not None]
    return [
        x is not None
        and y is not None
        and not any(a <= x and b >= y and (a < x or b > y) for a, b in known)
        for x, y in points
    ]  # fmt: skip
