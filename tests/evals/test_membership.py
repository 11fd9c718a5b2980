"""Membership inference on records whose answer is known beforehand."""

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from llm_forget.evals.membership import gradnorm, loss, min_k, min_k_plus_plus, reference, scores, zlib
from llm_forget.evals.metrics.membership_auc import membership_auc
from llm_forget.evals.metrics.membership_gradnorm import membership_gradnorm
from llm_forget.evals.metrics.membership_reference import membership_reference
from llm_forget.evals.metrics.membership_tpr import membership_tpr
from llm_forget.evals.metrics.priv_leak import leak, priv_leak
from llm_forget.evals.records import GradientRecord, TokenRecord
from llm_forget.evals.stats import auc_with_interval
from llm_forget.evals.verdict import apply_bound, parse_bound


def token_record(logps, row="r", answer=0, **given):
    logps = np.array(logps, dtype=np.float32)
    return TokenRecord(row, answer, logps, np.zeros(len(logps), dtype=bool), **given)


def split(n, mean, seed=0, tokens=8):
    """Rows whose tokens have about this log-probability."""
    rng = np.random.default_rng(seed)
    rows = -rng.gamma(4, -mean / 4, size=(n, 1)) - rng.exponential(0.1, size=(n, tokens))
    return [token_record(row, str(i)) for i, row in enumerate(rows)]


def test_loss_is_the_mean_log_probability():
    assert loss(token_record([-1.0, -3.0])) == -2.0


def test_min_k_looks_at_the_least_likely_tokens():
    record = token_record([-1.0, -5.0, -2.0, -4.0, -3.0])
    assert min_k(record, k=0.4) == -4.5
    assert min_k(record, k=0.01) == -5.0
    assert min_k(record, k=1.0) == loss(record)
    assert min_k(record, k=0.5, include_last=False) == -4.5  # of -1, -5, -2, -4
    for k in (0.0, 1.2):
        with pytest.raises(ValueError, match="share of tokens"):
            min_k(record, k=k)


def test_min_k_plus_plus_measures_in_deviations_from_what_the_model_expects():
    means, variances = np.array([-2.0, -2.0], np.float32), np.array([4.0, 0.25], np.float32)
    record = token_record([-1.0, -3.0], means=means, variances=variances)
    assert min_k_plus_plus(record, k=0.5) == -2.0
    assert min_k_plus_plus(record, k=1.0) == pytest.approx((0.5 - 2) / 2)


def test_min_k_plus_plus_of_a_certain_model_is_zero():
    nothing = np.zeros(3, np.float32)
    assert min_k_plus_plus(token_record([0.0, 0.0, 0.0], means=nothing, variances=nothing)) == 0


def test_min_k_plus_plus_refuses_records_without_the_vocabulary():
    with pytest.raises(ValueError, match="row 'r' lacks"):
        min_k_plus_plus(token_record([-1.0]))


def test_zlib_divides_by_the_size_and_refuses_to_guess_it():
    assert zlib(token_record([-1.0, -3.0], zlib_bytes=4)) == -0.5
    with pytest.raises(ValueError, match="row 'r' lacks"):
        zlib(token_record([-1.0]))


def test_reference_is_zero_for_the_oracle():
    record = token_record([-1.0, -3.0])
    assert reference(record, record) == 0
    assert reference(record, token_record([-4.0, -4.0])) == 2.0


def test_gradnorm_is_higher_for_learnt_answers():
    record = GradientRecord("r", 0, {"1": 5.0, "2": 3.0, "inf": 2.0})
    assert [gradnorm(record, p=p) for p in (1, 2.0, float("inf"))] == [-5.0, -3.0, -2.0]
    with pytest.raises(ValueError, match="allowed: 1, 2, inf"):
        gradnorm(record, p=3)


def test_answers_of_a_row_are_averaged_and_empty_ones_unscored():
    rows = [token_record([-1.0], "a", 0), token_record([-3.0], "a", 1), token_record([], "b"), token_record([], "a", 2)]
    found = scores(rows, "loss")
    assert found[0] == -2.0
    assert math.isnan(found[1])


def test_attacks_that_need_more_than_log_probabilities_name_their_metric():
    with pytest.raises(ValueError, match="membership_gradnorm"):
        scores(split(2, -1.0), "gradnorm")
    with pytest.raises(ValueError, match="membership_reference"):
        scores(split(2, -1.0), "reference")
    with pytest.raises(ValueError, match="did you mean 'min_k'"):
        scores(split(2, -1.0), "min_kk")


@pytest.mark.parametrize("attack", ["loss", "min_k"])
def test_members_that_are_much_likelier_give_an_auc_of_one(attack):
    known, unknown = split(50, -0.01), split(50, -6.0, seed=1)
    assert membership_auc(known, unknown, attack=attack).value == 1.0
    assert membership_auc(unknown, known, attack=attack).value == 0.0
    assert membership_auc(known, known, attack=attack).value == 0.5
    assert membership_tpr(known, unknown, attack=attack).value == 1.0
    assert membership_tpr(unknown, known, attack=attack).value == 0.0


def test_an_estimate_carries_the_score_of_every_row():
    known, unknown = split(3, -0.1), [*split(4, -1.0, seed=1), token_record([], "empty")]
    estimate = membership_auc(known, unknown, attack="loss")
    assert estimate.rows["members"].tolist() == scores(known, "loss").tolist()
    assert math.isnan(estimate.rows["nonmembers"][-1])
    assert (estimate.n, estimate.n_unscored) == (3, 1)


AROUND_CHANCE = parse_bound({"line": "auc", "within": 0.1, "of": 0.5, "interval": True}, "test")


def holds(estimate):
    """What the bound of suite privacy says of an AUC; None when it cannot be told."""
    return apply_bound(AROUND_CHANCE, {"value": estimate.value, "ci": estimate.ci, "n": estimate.n}).holds


def test_three_rows_decide_nothing():
    for one, two in [(np.ones(3), np.zeros(3)), (np.zeros(3), np.ones(3)), (np.ones(3), np.ones(3))]:
        assert holds(auc_with_interval(one, two)) is None


@pytest.mark.slow
def test_the_verdict_passes_forgets_and_stays_open_where_it_should():
    def verdict(n, mean):
        return holds(membership_auc(split(n, mean, seed=2), split(n, -2.0, seed=3)))

    assert verdict(1000, -2.0) is True  # nothing tells the splits apart
    assert verdict(20, -2.0) is None
    assert verdict(1000, -0.2) is False  # the target knows its rows
    assert verdict(1000, -8.0) is False  # far less likely than rows never seen: recognised as well


def test_the_reference_attack_on_the_oracle_itself_is_at_chance():
    forget, holdout = split(200, -1.0), split(200, -2.0, seed=1)
    itself = membership_reference(forget, holdout, forget, holdout)
    assert itself.value == 0.5
    assert holds(itself) is True
    knowing = [replace(record, logps=record.logps / 2) for record in forget]
    assert membership_reference(knowing, holdout, forget, holdout).value > 0.99


def test_the_reference_attack_refuses_other_rows():
    with pytest.raises(ValueError, match="same rows"):
        membership_reference(split(3, -1.0), split(3, -1.0), split(4, -1.0), split(3, -1.0))


def test_gradnorm_compares_members_with_nonmembers():
    def norms(values):
        return [GradientRecord(str(i), 0, {"1": v, "2": v * v, "inf": -v}) for i, v in enumerate(values)]

    small, large = norms([1.0, 2.0, 3.0]), norms([4.0, 5.0, 2.5])
    assert membership_gradnorm(small, large).value == pytest.approx(8 / 9)
    assert membership_gradnorm(small, large, p=float("inf")).value == pytest.approx(1 / 9)


def test_priv_leak_of_the_oracle_is_zero():
    forget, holdout = split(100, -1.8), split(100, -2.0, seed=1)
    estimate = priv_leak(forget, holdout, forget, holdout)
    assert (estimate.value, estimate.ci) == (0, (0, 0))


def test_priv_leak_follows_from_both_aucs():
    sides = [split(100, mean, seed) for seed, mean in enumerate([-0.8, -2.0, -1.7, -2.1])]
    value, oracle = membership_auc(*sides[:2]).value, membership_auc(*sides[2:]).value
    estimate = priv_leak(*sides)
    assert estimate.value == pytest.approx(100 * ((1 - value) - (1 - oracle)) / (1 - oracle))
    assert estimate.ci[0] < estimate.value < estimate.ci[1] < 0
    assert (leak(1.0, 0.4), leak(0.4, 0.4)) == (-100, 0)


def owned(records, rows_each):
    """The records with one subject for each ``rows_each`` of them."""
    return [replace(record, subject=f"s{i // rows_each:02d}") for i, record in enumerate(records)]


@pytest.mark.parametrize(
    "metric", [membership_auc, partial(membership_tpr, at_fpr=0.2), membership_reference, priv_leak]
)
def test_intervals_of_members_and_nonmembers_resample_subjects(metric):
    needs = 4 if metric in (membership_reference, priv_leak) else 2
    sides = [split(20, -1.0 - 0.1 * i, seed=i) for i in range(4)][:needs]
    repeated = [[replace(r, id=f"{r.id}-{copy}") for r in side for copy in range(4)] for side in sides]
    ci = metric(*sides).ci
    by_row, by_subject = (metric(*(owned(side, each) for side in repeated)).ci for each in (1, 4))
    assert by_subject == pytest.approx(ci, abs=0.05 * max(1, abs(ci[0])))
    assert by_row[1] - by_row[0] < 0.8 * (by_subject[1] - by_subject[0])


def test_priv_leak_of_rows_that_all_are_recognised_has_an_interval():
    known, holdout = split(30, -0.01), split(30, -6.0, seed=1)
    oracle = split(30, -6.0, seed=2), split(30, -6.0, seed=3)
    estimate = priv_leak(known, holdout, *oracle)
    assert estimate.value == -100
    assert estimate.ci[0] == pytest.approx(-100)
    assert estimate.ci[1] > -95


def test_priv_leak_is_unscored_where_the_oracle_tells_the_rows_apart():
    known, holdout = split(30, -0.01), split(30, -6.0, seed=1)
    estimate = priv_leak(known, holdout, known, holdout)
    assert math.isnan(estimate.value)
    assert estimate.ci is None


def test_nothing_to_compare_is_nan_with_n_zero():
    estimate = membership_auc([], split(3, -1.0))
    assert math.isnan(estimate.value)
    assert (estimate.ci, estimate.n) == (None, 0)
    assert math.isnan(priv_leak([], [], [], []).value)
