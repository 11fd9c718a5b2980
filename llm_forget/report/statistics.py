"""Compute the numbers that the charts of a report show, from row scores and from results."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from llm_forget.evals.metrics import metric_of
from llm_forget.evals.stats import Rows, scored

UTILITIES, FALLBACK = ("model_utility", "utility"), "retain_probability"  # names of metrics


def ecdf(values: Rows) -> tuple[Rows, Rows]:
    """Return the scored values in ascending order, and for each the share of rows at or below it; both are ``[n]``."""
    x = np.sort(scored(values))
    return x, np.arange(1, len(x) + 1) / max(1, len(x))


def quantiles(values: Rows, shares: Sequence[float]) -> list[float]:
    """Return a quantile of the scored values for each share, such as the median for 0.5; NaN without scored values."""
    scored_values = scored(values)
    if not len(scored_values):
        return [math.nan] * len(shares)
    return [float(q) for q in np.quantile(scored_values, list(shares), method="inverted_cdf")]


def roc(members: Rows, nonmembers: Rows) -> tuple[Rows, Rows]:
    """Return the false-positive rates and the true-positive rates, each ``[t]``, of an ROC curve from (0, 0) to (1, 1).

    Equal scores of a member and a non-member give a straight line, so the area under the curve equals `stats.auc`.
    """
    member_scores, nonmember_scores = np.sort(scored(members)), np.sort(scored(nonmembers))
    thresholds = np.unique(np.concatenate([member_scores, nonmember_scores]))[::-1]
    rates = [
        np.concatenate([[0], len(scores) - np.searchsorted(scores, thresholds, side="left")]) / max(1, len(scores))
        for scores in (nonmember_scores, member_scores)
    ]
    return rates[0], rates[1]


def forget_distance(metrics: Mapping[str, Any]) -> float | None:
    """Return the distance of the unlearned model from the oracle: 0 at the oracle, 1 at the target or further away.

    The distance is the mean of min(1, |unlearned - oracle| / |target - oracle|) over the metrics with goal
    ``match_oracle``, or None without such metrics. A metric is skipped if the intervals of target and oracle overlap,
    because the ratio is then noise. Metrics of text quality, such as perplexity, and attacks that need the target are
    skipped, too.
    """
    distances = []
    for name, line in metrics.items():
        before, oracle, metric = line.get("before"), line.get("oracle"), metric_of(line, name)
        if line["goal"] != "match_oracle" or metric.about_text or metric.needs_target or not before or not oracle:
            continue
        line_values = [line["value"], before["value"], oracle["value"]]
        if None in line_values or _overlap(before, oracle):
            continue
        distances.append(min(1.0, abs(line_values[0] - line_values[2]) / abs(line_values[1] - line_values[2])))
    return float(np.mean(distances)) if distances else None


def _overlap(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    (low, high), (other_low, other_high) = (estimate["ci"] or [estimate["value"]] * 2 for estimate in (first, second))
    return low <= other_high and other_low <= high


def utility_line(metrics: Mapping[str, Any]) -> str | None:
    """Return the name of the metric that measures utility, or None if there is none.

    The first choice is a metric of `UTILITIES`, then one registered with ``utility=True``, then `FALLBACK`.
    """
    marked = [name for name, line in metrics.items() if metric_of(line, name).utility]
    return next((name for name in (*UTILITIES, *marked, FALLBACK) if name in metrics), None)


def pareto(points: Sequence[tuple[float | None, float | None]]) -> list[bool]:
    """Return for each point (distance, utility) whether it is Pareto-optimal; low distance and high utility are better.

    A point is Pareto-optimal if no other point is better in one number and at least as good in the other. Equal points
    are optimal together. A point with an unknown number is never optimal.
    """
    complete_points = [(x, y) for x, y in points if x is not None and y is not None]
    return [
        x is not None
        and y is not None
        and not any(a <= x and b >= y and (a < x or b > y) for a, b in complete_points)
        for x, y in points
    ]  # fmt: skip
