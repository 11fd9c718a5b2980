"""Means and AUC with intervals, the KS test and the harmonic mean; NaN is *unscored*, never zero."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float64]  # [N] one value per row of a split, NaN where it could not be scored
Codes = NDArray[np.int64]  # places in the common order of two samples; equal scores have equal codes
Interval = tuple[float, float]
BLOCK = 2_000_000  # numbers resampled at a time


@dataclass(frozen=True)
class Summary:
    """A mean, its confidence interval and what it rests on."""

    value: float
    ci: Interval | None
    n: int  # scored rows
    n_unscored: int


@dataclass(frozen=True)
class Estimate:
    """One number for the split from a metric that knows its own interval, and what each row had."""

    value: float
    ci: Interval | None
    n: int  # scored rows; of two sides the smaller number
    n_unscored: int = 0
    rows: dict[str, Rows] = field(default_factory=dict)  # scores by the name of the metric's input


def with_rows(estimate: Estimate, **rows: Rows) -> Estimate:
    """The same estimate with the scores it was made from, by the name of the metric's input."""
    return replace(estimate, rows=rows)


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
    block = max(1, BLOCK // len(values))
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


def auc(members: Rows, nonmembers: Rows) -> float:
    """Probability that a member scores higher than a non-member, ties counting half: Mann-Whitney's U / (m n).

    In [0, 1]; 0.5 when the scores say nothing, 1 when every member is above every non-member, NaN when a side has no
    scored row.
    """
    one, two = scored(members), scored(nonmembers)
    if not len(one) or not len(two):
        return math.nan
    return float(auc_of_codes(*codes(one, two)))


def auc_with_interval(
    members: Rows, nonmembers: Rows, *, level: float = 0.95, resamples: int = 1000, seed: int = 0
) -> Estimate:
    """`auc` with an interval that is wide where there are few rows, also at 0, at 1 and where all scores are equal.

    Percentiles of a bootstrap that resamples both sides, or, where that has too little to resample (`hardly_mixed`: it
    is [1, 1] for three rows that happen to be separated, and [0.5, 0.5] for three equal ones), Newcombe's score
    interval. Simulated with normal scores, 5 to 160 rows a side and AUC up to 0.985, 95 % intervals cover 92 to 99
    times in 100. Fewer than two scored rows on a side have no interval.
    """
    one, two = scored(members), scored(nonmembers)
    n, unscored = min(len(one), len(two)), len(members) + len(nonmembers) - len(one) - len(two)
    value = auc(one, two)
    if n < 2:
        return Estimate(value, None, n, unscored)
    if hardly_mixed(one, two):
        ci = auc_score_interval(value, len(one), len(two), level=level)
    else:
        ci = bootstrap(auc_of_codes, *codes(one, two), level=level, resamples=resamples, seed=seed)
    return Estimate(value, ci, n, unscored)


def tpr_at_fpr(members: Rows, nonmembers: Rows, fpr: float = 0.01) -> float:
    """Largest share of members above a threshold that at most a share ``fpr`` of non-members is above.

    In [0, 1] (arXiv:2112.03570); about ``fpr`` when the scores say nothing. With fewer than 1 / ``fpr``
    non-members the threshold is above all of them. NaN when a side has no scored row.

    Raises:
        ValueError: ``fpr`` is not in [0, 1).
    """
    if not 0 <= fpr < 1:
        raise ValueError(f"a false-positive rate must be at least 0 and below 1, not {fpr:g}")
    one, two = scored(members), scored(nonmembers)
    return float(_shares_above(one, two, fpr)) if len(one) and len(two) else math.nan


def tpr_with_interval(
    members: Rows,
    nonmembers: Rows,
    fpr: float = 0.01,
    *,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Estimate:
    """`tpr_at_fpr` with the hull of its bootstrap interval and Wilson's interval of a share of the members.

    The bootstrap is [0, 0] or [1, 1] where no or every member is found; Wilson's is not, but takes the threshold as
    given.
    """
    one, two = scored(members), scored(nonmembers)
    n, unscored = min(len(one), len(two)), len(members) + len(nonmembers) - len(one) - len(two)
    value = tpr_at_fpr(one, two, fpr)
    if n < 2:
        return Estimate(value, None, n, unscored)

    def shares(some: Rows, others: Rows) -> Rows:
        return _shares_above(some, others, fpr)

    drawn = bootstrap(shares, one, two, level=level, resamples=resamples, seed=seed)
    return Estimate(value, hull(drawn, _wilson(value, len(one), level)), n, unscored)


def bootstrap(
    statistic: Callable[[NDArray, NDArray], Rows],
    members: NDArray,
    nonmembers: NDArray,
    *,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """Percentile-bootstrap interval of a statistic of two samples, each resampled within itself.

    NaN at both ends when the statistic of some resample is NaN.

    Args:
        statistic: of ``[..., m, b]`` and ``[..., n, b]``, gives ``[b]``: ``b`` resamples at once.
        members: ``[..., m]``; rows of leading axes belong together and are drawn together.
        nonmembers: ``[..., n]``.
        level: coverage.
        resamples: bootstrap samples, in blocks of bounded memory.
        seed: of the resampling, so that a table can be reproduced.
    """
    generator = np.random.default_rng(seed)
    m, n = members.shape[-1], nonmembers.shape[-1]
    block = max(1, BLOCK // (members.size + nonmembers.size))
    values = np.empty(resamples)
    for start in range(0, resamples, block):
        b = min(block, resamples - start)
        one, two = generator.integers(0, m, (m, b)), generator.integers(0, n, (n, b))
        values[start : start + b] = statistic(members[..., one], nonmembers[..., two])
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def codes(members: Rows, nonmembers: Rows) -> tuple[Codes, Codes]:
    """Both samples as places in their common order: all that an AUC depends on, sorted once for all resamples."""
    _, places = np.unique(np.concatenate([members, nonmembers]), return_inverse=True)
    return places[: len(members)], places[len(members) :]


def auc_of_codes(members: Codes, nonmembers: Codes) -> Rows:
    """AUC of `codes` along the first axis: ``[m, ...]`` and ``[n, ...]`` give ``[...]``."""
    m, n = len(members), len(nonmembers)
    groups = int(max(members.max(), nonmembers.max())) + 1
    one, two = (_counts(side.reshape(len(side), -1), groups) for side in (members, nonmembers))  # [b, groups]
    below = two.cumsum(-1) - two / 2
    return (np.einsum("bg,bg->b", one, below) / (m * n)).reshape(members.shape[1:])


def _counts(drawn: Codes, groups: int) -> NDArray[np.int64]:
    b = drawn.shape[1]
    flat = (drawn + np.arange(b) * groups).ravel()
    return np.bincount(flat, minlength=b * groups).reshape(b, groups)


def _shares_above(members: Rows, nonmembers: Rows, fpr: float) -> Rows:
    """True-positive rates along the first axis."""
    allowed = math.floor(fpr * len(nonmembers) + 1e-9)  # 0.29 * 100 is 28.999999999999996
    threshold = np.sort(nonmembers, axis=0)[len(nonmembers) - 1 - allowed]  # [...]
    return (members > threshold).mean(axis=0)


def hardly_mixed(members: Rows, nonmembers: Rows) -> bool:
    """Whether nearly all pairs, or nearly none, have the member strictly above, so that a bootstrap is too narrow.

    The rule of thumb for shares: fewer than five rows' worth of pairs on one side. With 20 rows and an AUC of 0.96
    the bootstrap's 95 % interval covers 83 times in 100.
    """
    others = np.sort(nonmembers)
    above = np.searchsorted(others, members, "left").mean() / len(others)
    below = 1 - np.searchsorted(others, members, "right").mean() / len(others)
    return bool(min(len(members), len(others)) * min(above, below) < 5)


def auc_score_interval(value: float, m: int, n: int, *, level: float = 0.95) -> Interval:
    """Every AUC that an observed ``value`` does not contradict: Newcombe's method 5 (Statistics in Medicine 25, 2006).

    Hanley and McNeil's variance is taken at the AUC that is tested, as in Wilson's interval of a share, so the interval
    has a width at 0 and 1 too. 0.5 +/- 0.025 at m = n = 1000.
    """
    z = NormalDist().inv_cdf((1 + level) / 2)

    def contradicted(true: float) -> bool:
        mean_size = (m + n) / 2 - 1
        spread = 1 + mean_size * ((1 - true) / (2 - true) + true / (1 + true))
        return abs(value - true) > z * math.sqrt(true * (1 - true) * spread / (m * n))

    return _edge(contradicted, value, 0.0), _edge(contradicted, value, 1.0)


def _edge(contradicted: Callable[[float], bool], inside: float, outside: float) -> float:
    """Where a test changes its answer between two values, by bisection."""
    for _ in range(50):
        middle = (inside + outside) / 2
        inside, outside = (inside, middle) if contradicted(middle) else (middle, outside)
    return (inside + outside) / 2


def _wilson(share: float, n: int, level: float) -> Interval:
    z = NormalDist().inv_cdf((1 + level) / 2)
    center, half = share + z**2 / (2 * n), z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return max(0.0, (center - half) / (1 + z**2 / n)), min(1.0, (center + half) / (1 + z**2 / n))


def hull(one: Interval, two: Interval) -> Interval:
    """The smallest interval that holds both."""
    return min(one[0], two[0]), max(one[1], two[1])
