"""A bound holds, is broken, or cannot be told; never is the third taken for one of the others."""

import math

import pytest

from llm_forget.core.errors import EvaluationError
from llm_forget.evals.verdict import apply_bound, parse_bound, verdict_answer


def line(value, *, ci=None, n=40, before=0.9, oracle=0.1):
    others = {"before": before, "oracle": oracle}
    return {"value": value, "ci": ci, "n": n} | {k: None if v is None else {"value": v} for k, v in others.items()}


def found(bound, given):
    return apply_bound(parse_bound({"line": "p", **bound}, "test"), given)


def test_a_value_near_that_of_the_oracle_satisfies_the_bound():
    finding = found({"at_most": 1.5, "of": "oracle"}, line(0.12))
    assert finding.holds is True
    assert finding.sentence() == "p 0.120 (oracle 0.100; at most 1.5 times)"


@pytest.mark.parametrize(
    ("bound", "value", "holds"),
    [
        ({"at_most": 1.5, "of": "oracle"}, 0.2, False),
        ({"within": 0.05, "of": "oracle"}, 0.02, False),
        ({"within": 0.05, "of": "oracle"}, 0.14, True),
        ({"at_least": 0.9, "of": "before"}, 0.8, False),
        ({"at_least": 0.9, "of": "before"}, 0.82, True),
        ({"at_least": 0.05}, 0.04, False),
        ({"at_most": 1.5, "of": "oracle", "slack": 0.02}, 0.165, True),
        ({"at_most": 1.5, "of": "oracle", "slack": 0.02}, 0.175, False),
        ({"at_least": 0.9, "of": "before", "slack": 0.02}, 0.795, True),
        ({"within": 0.1, "of": 0.5}, 0.35, False),
    ],
)
def test_bounds_on_a_value(bound, value, holds):
    assert found(bound, line(value)).holds is holds


@pytest.mark.parametrize(
    ("ci", "holds"),
    [
        ([0.42, 0.58], True),
        ([0.38, 0.58], None),
        ([0.2, 0.9], None),
        ([0.10, 0.39], False),
        ([0.61, 0.70], False),
        ([0.8, 1.0], False),
    ],
)
def test_an_interval_is_an_equivalence_test_on_both_sides(ci, holds):
    finding = found({"within": 0.1, "of": 0.5, "interval": True}, line(sum(ci) / 2, ci=ci))
    assert finding.holds is holds


@pytest.mark.parametrize(("ci", "holds"), [([0.1, 0.2], True), ([0.1, 0.4], None), ([0.35, 0.5], False)])
def test_one_sided_bounds_take_the_whole_interval_too(ci, holds):
    assert found({"at_most": 0.3, "interval": True}, line(0.2, ci=ci)).holds is holds


@pytest.mark.parametrize(
    ("bound", "given", "why"),
    [
        ({"at_most": 1}, None, "not measured"),
        ({"at_most": 1}, line(None), "unscored"),
        ({"at_most": 1, "of": "oracle"}, line(0.1, oracle=None), "no value of oracle"),
        ({"at_most": 1, "of": "before"}, line(0.1) | {"before": {"value": None}}, "no value of before"),
        ({"at_most": 1, "min_n": 41}, line(0.1), "40 rows, 41 needed"),
        ({"at_most": 1, "interval": True}, line(0.1), "no interval"),
    ],
)
def test_an_inconclusive_bound_has_a_reason(bound, given, why):
    finding = found(bound, given)
    assert finding.holds is None
    assert finding.sentence().endswith(f": {why}")
    assert verdict_answer([finding]) == "inconclusive"


def test_one_violated_bound_is_a_no_even_with_an_inconclusive_one():
    held, broken, open_ = (found({"at_most": 0.3}, line(value)) for value in (0.1, 0.5, None))
    assert verdict_answer([held]) == "yes"
    assert verdict_answer([held, open_]) == "inconclusive"
    assert verdict_answer([held, open_, broken]) == "no"
    assert verdict_answer([]) == "inconclusive"


def test_a_zero_of_the_other_model_is_a_limit_like_any_other():
    assert found({"at_most": 1.5, "of": "oracle"}, line(0.0, oracle=0.0)).holds is True
    assert found({"at_most": 1.5, "of": "oracle"}, line(1e-9, oracle=0.0)).holds is False


@pytest.mark.parametrize(
    ("bound", "sentence"),
    [
        ({}, "exactly one of"),
        ({"at_most": 1, "at_least": 0}, "exactly one of"),
        ({"at_most": "1"}, "must be a number"),
        ({"at_most": math.nan}, "must be a number"),
        ({"at_most": 1, "of": "target"}, "oracle, before or a number"),
        ({"within": 1}, "is a distance and needs a reference"),
        ({"within": 0, "of": 0.5}, "must be above 0"),
        ({"within": 1, "of": "oracle", "slack": 0.1}, "is a distance; remove 'slack'"),
        ({"at_most": 1, "slack": "x"}, "must be a number"),
        ({"at_most": 1, "interval": 1}, "true or false"),
        ({"at_most": 1, "min_n": 0.5}, "whole number"),
        ({"at_mst": 1}, "did you mean 'at_most'"),
    ],
)
def test_invalid_bounds_are_refused(bound, sentence):
    with pytest.raises(ValueError, match=sentence):
        parse_bound({"line": "p", **bound}, "test")


@pytest.mark.parametrize(
    ("oracles", "value", "bound", "holds"),
    [
        ([0.10, 0.14, 0.12], 0.165, {"within_oracles": 1.25}, True),  # mean 0.12, limits 0.07 and 0.17
        ([0.10, 0.14, 0.12], 0.175, {"within_oracles": 1.25}, False),
        ([0.10, 0.14, 0.12], 0.075, {"within_oracles": 1.25}, True),
        ([0.10, 0.14, 0.12], 0.065, {"within_oracles": 1.25}, False),
        ([0.10, 0.14, 0.12], 0.175, {"within_oracles": 1.25, "slack": 0.01}, True),
        ([0.10, 0.14, 0.12], 0.165, {"within_oracles": 1.25, "of": "oracle"}, True),
        ([0.10], 0.10, {"within_oracles": 1.25}, None),
        ([0.10, None], 0.10, {"within_oracles": 1.25}, None),
    ],
)
def test_a_model_is_as_near_to_the_oracles_as_they_are_to_each_other(oracles, value, bound, holds):
    mean = None if None in oracles else sum(oracles) / len(oracles)
    finding = found(bound, {**line(value, oracle=mean), "oracles": oracles})
    assert finding.holds is holds


def test_the_distance_between_oracles_is_shown_and_missing_oracles_are_named():
    several = {**line(0.13, oracle=0.12), "oracles": [0.10, 0.14]}
    sentence = found({"within_oracles": 1.25, "slack": 0.01}, several).sentence()
    assert sentence == "p 0.130 (oracle 0.120; within 1.25 times the distance between oracles + 0.01, 0.040)"
    assert "one oracle has no distance; name two" in found({"within_oracles": 1.25}, line(0.12)).sentence()
    assert found({"within_oracles": 1.25}, line(0.12, oracle=None)).why == "no value of oracle"


def test_the_interval_may_have_to_lie_within_the_distance_between_oracles():
    several = {**line(0.13, ci=[0.11, 0.19], oracle=0.12), "oracles": [0.10, 0.14]}
    assert found({"within_oracles": 1.25, "interval": True}, several).holds is None
    assert found({"within_oracles": 2, "interval": True}, several).holds is True


@pytest.mark.parametrize("of", ["before", 0.5])
def test_a_bound_on_the_distance_between_oracles_has_no_other_reference(of):
    with pytest.raises(EvaluationError, match="'within_oracles' is relative to the oracles; remove 'of'"):
        parse_bound({"line": "p", "within_oracles": 1.25, "of": of}, "test")
