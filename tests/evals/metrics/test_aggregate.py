"""Scores that join several measures: their limits on paper, and the lines that a suite writes for them."""

import math

import numpy as np
import pytest
import yaml

from llm_forget.core import resources
from llm_forget.evals.metrics import METRICS, is_one_choice
from llm_forget.evals.metrics.aggregate import aggregate
from llm_forget.evals.metrics.fluency import fluency
from llm_forget.evals.metrics.memorization_score import memorization_score
from llm_forget.evals.metrics.privacy_score import privacy_score
from llm_forget.evals.metrics.utility_score import utility_score
from llm_forget.evals.suite import parse_suite

LINES = """
forget_paraphrase_probability: {metric: probability, records: forget_paraphrase, goal: match_oracle}
forget_known: {metric: truth_ratio, correct: forget_paraphrase, perturbed: forget_perturbed, summary: known,
  goal: match_oracle}
auc_loss: {metric: membership_auc, members: forget, nonmembers: holdout, attack: loss, goal: match_oracle}
auc_zlib: {metric: membership_auc, members: forget, nonmembers: holdout, attack: zlib, goal: match_oracle}
auc_min_k: {metric: membership_auc, members: forget, nonmembers: holdout, attack: min_k, goal: match_oracle}
auc_min_k_plus_plus:
  {metric: membership_auc, members: forget, nonmembers: holdout, attack: min_k_plus_plus, goal: match_oracle}
memory:
  metric: memorization_score
  measures: [extraction_strength, exact_memorization, forget_paraphrase_probability, forget_known]
  goal: higher
privacy: {metric: privacy_score, aucs: [auc_loss, auc_zlib, auc_min_k, auc_min_k_plus_plus], goal: higher}
legible: {metric: fluency, perplexity: forget_perplexity, repetition: forget_repetition, goal: keep}
useful: {metric: utility_score, components: [model_utility, legible], goal: keep}
overall: {metric: aggregate, scores: [memory, privacy, useful], goal: higher}
"""


def test_a_measure_of_one_gives_a_memorization_score_of_zero():
    assert memorization_score([0.0, np.array([0.0, 0.0])]) == 1.0
    assert memorization_score([1.0, 0.0]) == 0.0
    assert memorization_score([np.array([0.0, 1.0]), 0.75]) == pytest.approx(2 / (1 / 0.5 + 1 / 0.25))
    assert math.isnan(memorization_score([np.array([np.nan]), 0.5]))
    with pytest.raises(ValueError, match="at least 0"):
        memorization_score([1.5])


def test_the_privacy_score_of_the_oracle_is_one_and_of_the_farthest_auc_zero():
    assert privacy_score([0.3, 0.5], [0.3, 0.5]) == 1.0
    assert privacy_score([1.0], [0.3]) == 0.0
    assert privacy_score([0.0], [0.7]) == 0.0
    assert privacy_score([0.65], [0.3]) == pytest.approx(0.5)
    assert privacy_score([0.1], [0.3]) > privacy_score([0.0], [0.3])  # rows that are avoided leak too
    assert math.isnan(privacy_score([math.nan], [0.5]))
    with pytest.raises(ValueError, match="AUCs in"):
        privacy_score([-20.0], [0.5])


def test_the_utility_score_of_the_target_is_one_and_a_gain_offsets_no_loss():
    before = [0.6, np.array([0.2, 0.6])]
    assert utility_score(before, before) == pytest.approx(1.0)
    assert utility_score([0.9, np.array([0.2, 0.6])], before) == pytest.approx(1.0)
    assert utility_score([0.3, 0.9], before) == pytest.approx(2 / (2 + 1))
    assert utility_score([0.0, 0.9], before) == 0.0
    assert math.isnan(utility_score([math.nan, 0.4], before))
    assert math.isnan(utility_score([0.5, 0.5], [0.0, 0.5]))


def test_fluency_falls_for_noise_and_for_one_phrase_over_and_over():
    calm, fine = np.array([4.0, 9.0]), np.array([0.0, 0.0])
    assert fluency(calm, fine, calm) == pytest.approx(1.0)
    assert fluency(10 * calm, fine, calm) == pytest.approx(0.1)
    assert fluency(np.array([1.0, 1.0]), np.array([1.0, 1.0]), calm) == 0.0  # repetition is cheap for a judge
    assert fluency(np.array([1.0, 36.0]), fine, calm) == pytest.approx(1.0)  # geometric means: 6 and 6
    assert math.isnan(fluency(np.array([np.nan]), np.array([np.nan]), calm))


def test_the_aggregate_is_the_harmonic_mean_of_scores_and_refuses_other_values():
    assert aggregate([0.5, 0.5, 0.5]) == pytest.approx(0.5)
    assert aggregate([1.0, 1.0, 0.0]) == 0.0
    assert aggregate([1.0, 0.5, 0.25]) == pytest.approx(3 / 7)
    assert math.isnan(aggregate([1.0, math.nan]))
    for not_a_score in (1.2, -0.1):
        with pytest.raises(ValueError, match=r"scores in \[0, 1\]"):
            aggregate([0.5, not_a_score])


def test_every_score_that_is_one_choice_of_several_is_documented_and_marked():
    said = {entry.name for entry in METRICS if "One choice of several" in entry.function.__doc__}
    assert said == {entry.name for entry in METRICS if is_one_choice({"metric": entry.name})}
    assert "aggregate" in said


def test_a_suite_writes_the_aggregate_as_lines():
    suite = yaml.safe_load(resources.resolve("eval", "tofu").read_text(encoding="utf-8"))
    suite["probes"]["holdout"] = {"probe": "logprobs", "split": "holdout"}
    suite["metrics"] |= yaml.safe_load(LINES)
    lines = {line.name: line for line in parse_suite(suite, name="tofu").lines}
    assert lines["privacy"].other_inputs == {"oracle_aucs": ("oracle", "aucs")}
    assert lines["useful"].other_inputs == {"before_components": ("before", "components")}
    suite["metrics"]["overall"]["scores"] = ["memory", "forget"]
    with pytest.raises(ValueError, match="'scores' must be a line above"):
        parse_suite(suite, name="tofu")
    assert lines["overall"].inputs == {"scores": ["memory", "privacy", "useful"]}
