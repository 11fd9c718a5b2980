"""The numbers behind the charts."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from llm_forget.evals.stats import auc, tpr_at_fpr
from llm_forget.report.statistics import ecdf, forget_distance, pareto, quantiles, roc, utility_line

RNG = np.random.default_rng(0)


def test_ecdf_counts_the_scored_rows_at_or_below():
    x, share = ecdf(np.array([3.0, np.nan, 1.0, 2.0, 2.0]))
    assert_allclose(x, [1, 2, 2, 3])
    assert_allclose(share, [0.25, 0.5, 0.75, 1.0])


def test_quantiles_are_read_off_the_ecdf():
    values = RNG.normal(size=37)
    x, share = ecdf(values)
    for quantile_share, quantile in zip((0.1, 0.5, 0.9), quantiles(values, (0.1, 0.5, 0.9)), strict=True):
        assert quantile == x[np.argmax(share >= quantile_share)]


@pytest.mark.parametrize("decimals", [8, 0])
def test_area_under_the_roc_is_the_auc_with_and_without_ties(decimals):
    members, others = RNG.normal(0.7, 1, 40).round(decimals), RNG.normal(0, 1, 55).round(decimals)
    false, true = roc(members, others)
    assert (false[0], true[0], false[-1], true[-1]) == (0, 0, 1, 1)
    assert_allclose(np.trapezoid(true, false), auc(members, others), atol=1e-12)


@pytest.mark.parametrize("rate", [0.0, 0.01, 0.1, 0.5])
def test_true_positives_at_a_rate_lie_on_the_roc(rate):
    members, others = RNG.normal(1, 1, 80), RNG.normal(0, 1, 120)
    false, true = roc(members, others)
    assert tpr_at_fpr(members, others, rate) == true[false <= rate + 1e-9].max()


def line(value, before, oracle, goal="match_oracle", width=0.01):
    def side(v):
        return None if v is None else {"value": v, "ci": [v - width, v + width]}

    return {"value": value, "goal": goal, "before": side(before), "oracle": side(oracle)}


def test_distance_is_0_for_the_oracle_and_1_for_the_target():
    assert forget_distance({"a": line(0.1, 0.9, 0.1), "b": line(3.0, -5.0, 3.0)}) == 0
    assert forget_distance({"a": line(0.9, 0.9, 0.1), "b": line(-5.0, -5.0, 3.0)}) == pytest.approx(1)


def test_forgetting_too_much_is_a_distance_too():
    assert forget_distance({"a": line(0.0, 0.9, 0.3)}) == pytest.approx(0.5)


def test_no_single_line_dominates_the_distance():
    """A run that forgot but answers in gibberish is nearer than one that forgot nothing, whatever the perplexity."""
    forgot = {"a": line(0.1, 0.9, 0.05), "b": line(0.35, 1.0, 0.4), "far": line(90.0, 1.0, 4.0)}
    nothing = {"a": line(0.89, 0.9, 0.05), "b": line(0.98, 1.0, 0.4), "far": line(1.1, 1.0, 4.0)}
    assert forget_distance(forgot) < forget_distance(nothing) < 1
    assert forget_distance({"a": line(-5.0, 0.9, 0.3)}) == 1


@pytest.mark.parametrize("metric", ["repetition", "silence", "generated_perplexity", "membership_two_models"])
def test_metrics_that_do_not_measure_forgetting_do_not_count(metric):
    lines = {"a": line(0.3, 0.9, 0.1), "other": line(9.0, 1.0, 4.0) | {"metric": metric}}
    assert forget_distance(lines) == pytest.approx(0.25)


def test_lines_with_nothing_to_forget_or_another_goal_do_not_count():
    lines = {"a": line(0.1, 0.9, 0.1), "same": line(0.5, 0.305, 0.3), "keep": line(0.0, 1.0, 0.2, goal="keep")}
    assert forget_distance(lines) == 0
    assert forget_distance({"same": lines["same"]}) is None
    assert forget_distance({"no_oracle": line(0.1, 0.9, None)}) is None


def test_model_utility_is_preferred_to_retain_probability():
    assert utility_line({"retain_probability": {}, "model_utility": {}}) == "model_utility"
    assert utility_line({"rouge": {}}) is None


def test_the_front_holds_the_undominated_points():
    points = [(0.1, 0.5), (0.2, 0.9), (0.3, 0.8), (0.1, 0.4), (None, 1.0), (0.2, 0.9)]
    assert pareto(points) == [True, True, False, False, False, True]


def test_a_far_but_useful_run_and_a_near_but_useless_one_are_both_on_the_front():
    assert pareto([(0.0, 0.0), (1.0, 1.0)]) == [True, True]
