"""Intervals cover, tests match SciPy, NaN stays unscored."""

import math
import time
import tracemalloc
import warnings
from functools import partial

import numpy as np
import pytest
from scipy import stats as scipy_stats

from llm_forget.evals import stats
from llm_forget.evals.stats import (
    auc,
    auc_of_codes,
    auc_score_interval,
    auc_with_interval,
    bootstrap,
    codes,
    harmonic_mean,
    ks_p_value,
    mean_with_interval,
    tpr_at_fpr,
    tpr_with_interval,
    wilson_interval,
)


def test_the_interval_of_equal_rows_of_a_subject_is_that_of_the_subjects():
    values = np.random.default_rng(0).random(20)
    alone = mean_with_interval(values)
    subjects = [f"s{i:02d}" for i in range(20)]
    repeated = mean_with_interval(np.repeat(values, 4), np.repeat(subjects, 4))
    assert (repeated.n, repeated.ci) == (80, pytest.approx(alone.ci, rel=1e-9))
    assert mean_with_interval(values, subjects) == alone
    assert mean_with_interval(values, ["one"] * 20) == alone  # a single subject


def test_subjects_count_by_their_scored_rows():
    rows, subjects = np.array([1.0, 1.0, 0.0, np.nan, np.nan]), ["a", "a", "b", "b", "c"]
    summary = mean_with_interval(rows, subjects)
    assert (summary.value, summary.ci, summary.n) == (pytest.approx(2 / 3), (0.0, 1.0), 3)


TWO_SAMPLES = [auc_with_interval, partial(tpr_with_interval, fpr=0.2)]


def alike(m, n, each, correlation, rng):
    """Two samples of one distribution with ``m`` and ``n`` subjects of ``each`` rows, and the rows' subjects."""
    sides = []
    for count in (m, n):
        own, rows = rng.normal(size=(count, 1)), rng.normal(size=(count, each))
        sides.append((np.sqrt(correlation) * own + np.sqrt(1 - correlation) * rows).ravel())
    return sides, tuple(np.repeat([f"s{i:03d}" for i in range(count)], each) for count in (m, n))


@pytest.mark.parametrize("interval", TWO_SAMPLES)
def test_if_each_row_is_a_subject_the_interval_of_two_samples_is_that_of_the_rows(interval):
    (one, two), subjects = alike(40, 30, 1, 0, np.random.default_rng(0))
    one[3] = np.nan
    assert interval(one, two, subjects=subjects) == interval(one, two)
    assert interval(one, two, subjects=(["a"] * 40, ["b"] * 30)) == interval(one, two)  # a single subject a side


@pytest.mark.parametrize("interval", TWO_SAMPLES)
def test_equal_rows_of_a_subject_leave_the_interval_of_two_samples_as_wide_as_that_of_the_subjects(interval):
    (one, two), subjects = alike(40, 30, 1, 0, np.random.default_rng(0))
    alone = interval(one, two)
    repeated = interval(*(np.repeat(rows, 4) for rows in (one, two)), subjects=[np.repeat(s, 4) for s in subjects])
    assert repeated.value == pytest.approx(alone.value)
    assert repeated.ci == pytest.approx(alone.ci, abs=0.03)
    assert repeated.n == 120


def test_separated_samples_have_the_interval_of_as_many_rows_as_subjects():
    subjects = np.repeat(["a", "b", "c"], 10), np.repeat(["d", "e", "f", "g"], 10)
    estimate = auc_with_interval(np.ones(30), np.zeros(40), subjects)
    assert estimate.ci == auc_score_interval(1.0, 3, 4)
    found = tpr_with_interval(np.ones(30), np.zeros(40), 0.1, subjects)
    assert found.ci == wilson_interval(3, 3)


def test_weights_count_like_repeated_rows():
    rng = np.random.default_rng(0)
    one, two = rng.normal(0.5, 1, 12).round(1), rng.normal(size=9).round(1)
    weights, others = rng.integers(0, 4, 12), rng.integers(0, 4, 9)
    repeated = np.repeat(one, weights), np.repeat(two, others)
    assert auc_of_codes(*codes(one, two), weights[None], others[None]) == pytest.approx([auc(*repeated)])
    for fpr in (0.0, 0.1, 0.29, 0.6):
        share = stats._weighted_shares_above(one, two, weights[None], others[None], fpr=fpr)
        assert share == pytest.approx([tpr_at_fpr(*repeated, fpr)])


@pytest.mark.slow
def test_the_interval_of_an_auc_covers_if_rows_of_a_subject_are_alike():
    rng = np.random.default_rng(0)
    covered = {True: 0, False: 0}
    for seed in range(300):
        samples, subjects = alike(20, 20, 5, 0.6, rng)
        for by_subject in covered:
            estimate = auc_with_interval(*samples, subjects if by_subject else None, resamples=300, seed=seed)
            covered[by_subject] += estimate.ci[0] <= 0.5 <= estimate.ci[1]
    assert 0.90 <= covered[True] / 300 <= 0.98
    assert covered[False] / 300 < 0.85


def test_unscored_rows_are_counted_and_left_out():
    summary = mean_with_interval(np.array([1.0, np.nan, 0.0, np.nan]))
    assert (summary.value, summary.n, summary.n_unscored) == (0.5, 2, 2)


def test_nothing_scored_is_nan_with_n_zero():
    for rows in (np.array([]), np.array([np.nan, np.nan])):
        summary = mean_with_interval(rows)
        assert math.isnan(summary.value)
        assert (summary.ci, summary.n) == (None, 0)


def test_one_row_has_no_interval():
    assert mean_with_interval(np.array([0.3])).ci is None


@pytest.mark.slow
def test_the_interval_covers_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(1)
    covered = 0
    for seed in range(400):
        low, high = mean_with_interval(rng.beta(2, 5, size=60), resamples=400, seed=seed).ci
        covered += low <= 2 / 7 <= high
    assert 0.90 <= covered / 400 <= 0.98


def test_the_interval_is_scipys_percentile_bootstrap():
    rows = np.random.default_rng(0).random(50)
    low, high = mean_with_interval(rows).ci
    reference = scipy_stats.bootstrap((rows,), np.mean, n_resamples=2000, method="percentile", rng=0)
    assert (low, high) == pytest.approx(reference.confidence_interval, abs=1e-12)


@pytest.mark.slow
def test_the_interval_of_a_share_is_that_of_the_binomial_distribution_of_its_resamples():
    rows = np.repeat([1.0, 0.0], [90, 310])
    quantiles = scipy_stats.binom.ppf([0.025, 0.975], 400, 90 / 400) / 400
    assert mean_with_interval(rows, resamples=20000).ci == pytest.approx(quantiles, abs=1.01 / 400)  # one row


def test_the_interval_is_reproducible_and_independent_of_block_size(monkeypatch):
    rows = np.random.default_rng(0).random(5000)
    whole = mean_with_interval(rows, resamples=300).ci
    assert mean_with_interval(rows, resamples=300).ci == whole
    monkeypatch.setattr(stats, "BLOCK", 70_000)  # 14 resamples at once
    assert mean_with_interval(rows, resamples=300).ci == whole


@pytest.mark.slow
def test_resamples_of_many_rows_are_drawn_in_blocks_of_bounded_memory():
    rows = np.random.default_rng(0).random(200_000)
    tracemalloc.start()
    mean_with_interval(rows, resamples=100)  # 320 MB at once
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60e6


@pytest.mark.parametrize("value", [0.0, 0.3, 0.7, 1.0, 1 / 3, -2.5e9])
def test_equal_rows_have_an_interval_of_width_zero_at_their_mean(value):
    for n in (2, 3, 40, 41):
        summary = mean_with_interval(np.full(n, value))
        assert summary.ci == (summary.value, summary.value)


def test_an_infinite_row_leaves_the_mean_without_an_interval():
    summary = mean_with_interval(np.array([1.0, np.inf, np.nan]))
    assert (summary.value, summary.ci, summary.n, summary.n_unscored) == (np.inf, None, 2, 1)


@pytest.mark.slow
def test_edge_cases_raise_no_warning():
    samples = [np.array(v) for v in ([], [np.nan], [1.0], [1.0, np.nan], [1.0, 1.0], [0.0, 1.0], [np.inf, 1.0, 2.0])]
    samples += [np.zeros(300), np.ones(300), np.arange(1000.0), np.arange(2000.0, 3000.0)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for members in samples:
            mean_with_interval(members)
            for nonmembers in samples:
                ks_p_value(members, nonmembers)
                auc_with_interval(members, nonmembers, resamples=20)
                tpr_with_interval(members, nonmembers, resamples=20)


def test_a_resample_without_a_value_leaves_the_bootstrap_without_an_end_and_without_a_warning():
    def ratio(rows):
        return np.where(rows.any(-1), rows.mean(-1), np.nan)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        low, high = bootstrap(ratio, np.array([0.0, 0.0, 1.0]))
    assert math.isnan(low)
    assert math.isnan(high)


@pytest.mark.parametrize("n", [1, 2, 7, 50, 10_000])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_wilsons_interval_ends_where_the_score_test_rejects(n, level):
    z = scipy_stats.norm.ppf((1 + level) / 2)
    for successes in {0, 1, n // 3, n - 1, n}:
        share = successes / n
        low, high = wilson_interval(successes, n, level=level)
        assert 0 <= low <= share <= high <= 1
        assert (low == 0, high == 1) == (successes == 0, successes == n)
        for end in {low, high} - {0.0, 1.0}:
            assert abs(share - end) == pytest.approx(z * math.sqrt(end * (1 - end) / n), rel=1e-9)


def test_equal_samples_cannot_be_told_apart():
    rows = np.random.default_rng(0).random(40)
    assert ks_p_value(rows, rows) == 1.0
    assert math.isnan(ks_p_value(rows, np.array([np.nan])))


def test_harmonic_mean_limits():
    assert harmonic_mean([0.5, 0.0]) == 0.0
    assert isinstance(harmonic_mean([0.5, 0.0]), float)
    assert harmonic_mean([0.4] * 9) == pytest.approx(0.4)
    assert math.isnan(harmonic_mean([]))
    assert math.isnan(harmonic_mean([0.5, math.nan]))
    with pytest.raises(ValueError, match="at least 0"):
        harmonic_mean([0.5, -0.1])


def test_auc_counts_the_pairs_that_are_in_order():
    assert auc(np.array([3.0, 2.0]), np.array([1.0, 0.0])) == 1.0
    assert auc(np.array([0.0]), np.array([1.0, np.inf])) == 0.0
    assert auc(np.array([1.0, 2.0, 2.0]), np.array([1.0, 2.0, 2.0])) == 0.5
    # By hand: 2 > 1, 2 > 1, 2 = 2 and 0 < all, of six pairs.
    assert auc(np.array([2.0, 0.0]), np.array([1.0, 1.0, 2.0])) == pytest.approx(2.5 / 6)
    assert auc(np.array([1.0, np.nan]), np.array([0.0])) == 1.0
    assert math.isnan(auc(np.array([]), np.array([1.0])))


def test_auc_is_the_mann_whitney_statistic_with_ties():
    rng = np.random.default_rng(0)
    one, two = rng.normal(0.3, 1, 70).round(1), rng.normal(0, 1, 45).round(1)
    u = scipy_stats.mannwhitneyu(one, two).statistic
    assert auc(one, two) == pytest.approx(u / (70 * 45), abs=1e-12)
    assert auc(two, one) == pytest.approx(1 - auc(one, two), abs=1e-12)


def test_auc_depends_on_the_order_of_the_scores_only():
    rng = np.random.default_rng(0)
    one, two = rng.normal(size=30), rng.normal(size=40)
    assert auc_with_interval(np.exp(one), np.exp(two)) == auc_with_interval(one, two)


EXHAUSTIVE_COVERAGE = [pytest.param(*case, marks=pytest.mark.exhaustive) for case in ((20, 0.0), (80, 1.0))]


def coverage(m, n, shift, spread=1.0):
    """How often the interval of an AUC holds the true one, over 400 pairs of normal samples."""
    rng = np.random.default_rng(m + n)
    truth = scipy_stats.norm.cdf(shift / np.hypot(1, spread))
    covered = 0
    for seed in range(400):
        estimate = auc_with_interval(rng.normal(shift, spread, m), rng.normal(size=n), resamples=400, seed=seed)
        covered += estimate.ci[0] <= truth <= estimate.ci[1]
    return covered / 400


@pytest.mark.slow
@pytest.mark.parametrize(("n", "shift"), [(20, 0.5), (80, 0.0), (80, 1.5), *EXHAUSTIVE_COVERAGE])
def test_the_interval_of_an_auc_covers_as_often_as_it_says(n, shift):
    assert 0.90 <= coverage(n, n, shift) <= 0.98


@pytest.mark.slow
def test_the_interval_of_an_auc_covers_unequal_sizes_and_spreads_too():
    assert 0.90 <= coverage(100, 50, 0.0, spread=4.0) <= 0.98


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n", "shift"),
    [(5, 0.0), (20, 1.0), (20, 2.5), (80, 3.0), pytest.param(80, 2.5, marks=pytest.mark.exhaustive)],
)
def test_with_few_rows_out_of_order_the_interval_of_an_auc_is_rather_too_wide(n, shift):
    assert 0.93 <= coverage(n, n, shift) <= 0.995


def test_the_bootstrap_of_an_auc_is_scipys_of_the_mann_whitney_statistic():
    rng = np.random.default_rng(0)
    one, two = rng.normal(0.5, 1, 60).round(1), rng.normal(size=50).round(1)

    def statistic(a, b, axis):
        return scipy_stats.mannwhitneyu(a, b, axis=axis).statistic / (60 * 50)

    reference = scipy_stats.bootstrap((one, two), statistic, n_resamples=1000, method="percentile", rng=0)
    assert bootstrap(auc_of_codes, *codes(one, two)) == pytest.approx(reference.confidence_interval, abs=1e-12)


def test_rows_of_leading_axes_are_resampled_together():
    rng = np.random.default_rng(0)
    one, two = rng.normal(size=40), rng.normal(size=30)

    def differences(members, nonmembers):
        means = members.mean(-1) - nonmembers.mean(-1)  # [2, b]
        return means[0] - means[1]

    low, high = bootstrap(differences, np.stack([one, one - 3]), np.stack([two, two + 4]))
    assert (low, high) == pytest.approx((7, 7), abs=1e-12)


def test_the_bootstrap_does_not_depend_on_its_blocks(monkeypatch):
    rng = np.random.default_rng(0)
    one, two = rng.normal(size=50), rng.normal(size=50)
    whole = bootstrap(auc_of_codes, *codes(one, two))
    monkeypatch.setattr(stats, "BLOCK", 3000)
    assert bootstrap(auc_of_codes, *codes(one, two)) == pytest.approx(whole, abs=0.02)


@pytest.mark.slow
def test_a_thousand_resamples_of_a_thousand_rows_take_less_than_two_seconds():
    rng = np.random.default_rng(0)
    began = time.perf_counter()
    auc_with_interval(rng.normal(size=1000), rng.normal(size=1000), resamples=1000)
    assert time.perf_counter() - began < 2


def test_half_widths_are_those_that_the_references_state():
    for n, width in [(20, 0.175), (200, 0.056), (1000, 0.025)]:
        low, high = auc_score_interval(0.5, n, n)
        assert (high - low) / 2 == pytest.approx(width, abs=0.01)


@pytest.mark.parametrize("n", [2, 3, 10, 1000])
def test_the_interval_of_an_auc_has_a_width_also_where_nothing_varies(n):
    for one, two, value in [(np.ones(n), np.zeros(n), 1), (np.zeros(n), np.ones(n), 0), (np.ones(n), np.ones(n), 0.5)]:
        estimate = auc_with_interval(one, two)
        assert estimate.value == value
        assert estimate.ci[1] - estimate.ci[0] > 1 / n


def test_one_row_on_a_side_has_no_interval_and_unscored_rows_are_counted():
    estimate = auc_with_interval(np.array([1.0, np.nan]), np.array([0.0, 0.5, np.nan]))
    assert (estimate.value, estimate.ci, estimate.n, estimate.n_unscored) == (1.0, None, 1, 2)


def test_tpr_is_the_best_threshold_that_the_false_positives_allow():
    nonmembers = np.arange(100.0)
    members = np.array([200.0, 98.5, 98.0, 3.0])
    assert tpr_at_fpr(members, nonmembers, 0.0) == 0.25
    assert tpr_at_fpr(members, nonmembers, 0.01) == 0.5
    assert tpr_at_fpr(np.array([70.5]), nonmembers, 0.29) == 1.0  # 29 of 100 are above, as many as allowed
    assert tpr_at_fpr(members, nonmembers[:50], 0.01) == 0.75  # too few to allow one
    assert tpr_at_fpr(np.ones(5), np.ones(5), 0.5) == 0.0  # no threshold separates equal scores
    assert math.isnan(tpr_at_fpr(members, np.array([np.nan])))
    with pytest.raises(ValueError, match="false-positive rate"):
        tpr_at_fpr(members, nonmembers, 1.0)


def test_tpr_agrees_with_the_points_of_a_roc_curve():
    rng = np.random.default_rng(0)
    one, two = rng.normal(1, 1, 300).round(1), rng.normal(size=200).round(1)
    for fpr in (0.0, 0.01, 0.05, 0.3):
        points = [((two > t).mean(), (one > t).mean()) for t in [-np.inf, *one, *two]]
        assert tpr_at_fpr(one, two, fpr) == max(tpr for false, tpr in points if false <= fpr + 1e-12)


def test_the_interval_of_a_tpr_has_a_width_where_nobody_is_found():
    nothing = tpr_with_interval(np.zeros(50), np.ones(50))
    assert nothing.value == 0
    assert nothing.ci == pytest.approx((0, 0.071), abs=1e-3)  # Wilson, n = 50
    assert tpr_with_interval(np.ones(50), np.zeros(50)).ci == pytest.approx((0.929, 1), abs=1e-3)
