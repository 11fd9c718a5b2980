"""Means with intervals, the Kolmogorov-Smirnov test and the harmonic mean; NaN is *unscored*, never zero."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float64]  # [N] one value per row of a split, NaN where it could not be scored


@dataclass(frozen=True)
class Summary:
    """A mean, its confidence interval and what it rests on."""

    value: float
    ci: tuple[float, float] | None
    n: int  # scored rows
    n_unscored: int


def scored(rows: Rows) -> Rows:
    """The rows that are not NaN, ``[n]``."""
    return rows[~np.isnan(rows)]


def mean(rows: Rows) -> float:
    """Mean over the scored rows; NaN when there is none."""
    values = scored(rows)
    return float(values.mean()) if len(values) else math.nan


def mean_with_interval(rows: Rows, *, level: float = 0.95, resamples: int = 2000, seed: int = 0) -> Summary:
    """Mean over the scored rows with its percentile-bootstrap interval.

    Nothing scored gives NaN with n = 0; fewer than two scored rows, or an infinite one, have no interval.

    Args:
        rows: ``[N]``.
        level: coverage of the interval.
        resamples: bootstrap samples.
        seed: of the resampling, so that a table can be reproduced.
    """
    values = scored(np.asarray(rows, dtype=np.float64))  # [n]
    n, unscored = len(values), len(rows) - len(values)
    if n == 0:
        return Summary(math.nan, None, 0, unscored)
    center = float(values.mean())
    if n == 1 or not math.isfinite(center):
        return Summary(center, None, n, unscored)
    tail = (1 - level) / 2
    low, high = np.quantile(_resampled_means(values, resamples, seed), [tail, 1 - tail])
    return Summary(center, (float(low), float(high)), n, unscored)


def _resampled_means(values: Rows, resamples: int, seed: int) -> Rows:
    """Means of samples drawn with replacement, ``[resamples]``, in blocks of bounded memory."""
    generator = np.random.default_rng(seed)
    block = max(1, 2_000_000 // len(values))
    means = np.empty(resamples)
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        means[start : start + size] = values[generator.integers(0, len(values), (size, len(values)))].mean(-1)
    return means


def ks_p_value(left: Rows, right: Rows) -> float:
    """P-value of the two-sided two-sample Kolmogorov-Smirnov test; NaN when a side has no scored row.

    Equal samples give 1. SciPy chooses between the exact and the asymptotic distribution by sample size.
    """
    from scipy.stats import ks_2samp

    one, two = scored(left), scored(right)
    if not len(one) or not len(two):
        return math.nan
    return float(ks_2samp(one, two).pvalue)


def harmonic_mean(values: Sequence[float]) -> float:
    """Harmonic mean of non-negative numbers: 0 as soon as one is 0, NaN when one is NaN or there is none.

    Raises:
        ValueError: a negative value.
    """
    numbers = [float(value) for value in values]
    if not numbers or any(math.isnan(number) for number in numbers):
        return math.nan
    if min(numbers) < 0:
        raise ValueError(f"a harmonic mean needs values of at least 0, not {min(numbers):g}")
    if min(numbers) == 0:
        return 0.0
    return len(numbers) / math.fsum(1 / number for number in numbers)
