"""Intervals cover, tests match SciPy, NaN stays unscored."""

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from llm_forget.evals.stats import harmonic_mean, ks_p_value, mean_with_interval


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


def test_the_interval_covers_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(1)
    covered = 0
    for seed in range(400):
        low, high = mean_with_interval(rng.beta(2, 5, size=60), resamples=400, seed=seed).ci
        covered += low <= 2 / 7 <= high
    assert 0.91 <= covered / 400 <= 0.98


def test_the_interval_agrees_with_scipy():
    rows = np.random.default_rng(0).random(50)
    low, high = mean_with_interval(rows, resamples=20000).ci
    theirs = scipy_stats.bootstrap((rows,), np.mean, n_resamples=20000, method="percentile", rng=0).confidence_interval
    assert low == pytest.approx(theirs.low, abs=2e-3)
    assert high == pytest.approx(theirs.high, abs=2e-3)


def test_the_interval_is_reproducible_and_independent_of_block_size():
    rows = np.random.default_rng(0).random(5000)
    assert mean_with_interval(rows, resamples=500).ci == mean_with_interval(rows, resamples=500).ci


def test_equal_samples_cannot_be_told_apart():
    rows = np.random.default_rng(0).random(40)
    assert ks_p_value(rows, rows) == 1.0
    assert math.isnan(ks_p_value(rows, np.array([np.nan])))


def test_harmonic_mean_limits():
    assert harmonic_mean([0.5, 0.0]) == 0.0
    assert harmonic_mean([0.4] * 9) == pytest.approx(0.4)
    assert math.isnan(harmonic_mean([]))
    assert math.isnan(harmonic_mean([0.5, math.nan]))
    with pytest.raises(ValueError, match="at least 0"):
        harmonic_mean([0.5, -0.1])
