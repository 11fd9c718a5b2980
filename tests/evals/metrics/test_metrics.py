"""What each metric must give in cases one can work out by hand."""

import math

import numpy as np
import pytest

from llm_forget.evals.metrics import METRICS
from llm_forget.evals.metrics.exact_memorization import exact_memorization
from llm_forget.evals.metrics.extraction_strength import extraction_strength
from llm_forget.evals.metrics.forget_quality import forget_quality
from llm_forget.evals.metrics.model_utility import model_utility
from llm_forget.evals.metrics.probability import probability
from llm_forget.evals.metrics.probability_normalised import probability_normalised
from llm_forget.evals.metrics.rouge import rouge
from llm_forget.evals.metrics.truth_ratio import truth_ratio
from llm_forget.evals.records import GenerationRecord, TokenRecord


def record(row, logps, hits=None, answer=0):
    hits = [True] * len(logps) if hits is None else hits
    return TokenRecord(row, answer, np.array(logps, dtype=np.float32), np.array(hits, dtype=bool))


def hits(pattern):
    return [record("a", [-1.0] * len(pattern), [c == "1" for c in pattern])]


def test_every_metric_has_a_paper_and_a_docstring():
    assert METRICS.names() == [
        "aggregate",
        "character_overlap",
        "discoverable_extraction",
        "exact_memorization",
        "extraction_strength",
        "fact_leak",
        "fluency",
        "forget_quality",
        "generated_perplexity",
        "kl_to_oracle",
        "leak_at_k",
        "longest_common_subsequence",
        "longest_common_substring",
        "membership_auc",
        "membership_gradnorm",
        "membership_reference",
        "membership_tpr",
        "membership_two_models",
        "memorization_score",
        "model_utility",
        "ngram_overlap",
        "priv_leak",
        "privacy_score",
        "probability",
        "probability_normalised",
        "repetition",
        "rouge",
        "silence",
        "token_class_memorization",
        "toxicity",
        "truth_ratio",
        "utility_score",
    ]
    for entry in METRICS:
        assert entry.paper
        assert entry.function.__doc__


def test_probability_of_a_uniform_model_is_one_over_the_vocabulary():
    assert probability([record("a", [-math.log(7)] * 5)])[0] == pytest.approx(1 / 7)


def test_probability_averages_tokens_before_and_answers_after_the_exponential():
    rows = probability([record("a", [0.0, math.log(0.25)]), record("a", [math.log(0.1)], answer=1)])
    assert rows == pytest.approx([(0.5 + 0.1) / 2])


@pytest.mark.parametrize("score", [probability, exact_memorization, extraction_strength])
def test_a_row_without_targets_is_unscored(score):
    values = score([record("a", []), record("b", [0.0])])
    assert np.isnan(values[0])
    assert values[1] == 1


def test_normalised_probability_of_ignorance_is_one_over_the_options():
    right, wrong = [record("a", [-2.0])], [record("a", [-2.0], answer=i) for i in range(3)]
    assert probability_normalised(right, wrong) == pytest.approx([0.25])


def test_truth_ratio_summaries_at_indifference_and_certainty():
    even, lie = [record("a", [-2.0])], [record("a", [-2.0, -2.0])]
    expected = {"ratio": 1.0, "forget": 1.0, "retain": 0.0, "known": 0.5}
    for summary, value in expected.items():
        assert truth_ratio(even, lie, summary=summary) == pytest.approx([value])
    sure, lie = [record("a", [0.0])], [record("a", [-50.0])]
    expected = {"ratio": 0.0, "forget": 0.0, "retain": 1.0, "known": 1.0}
    for summary, value in expected.items():
        assert truth_ratio(sure, lie, summary=summary) == pytest.approx([value])


def test_truth_ratio_is_symmetric_only_in_the_forget_summary():
    one, two = [record("a", [-1.0])], [record("a", [-2.0])]
    assert truth_ratio(one, two, summary="forget") == pytest.approx(truth_ratio(two, one, summary="forget"))
    assert truth_ratio(one, two) == pytest.approx([math.exp(-1)])
    assert truth_ratio(two, one) == pytest.approx([math.exp(1)])


def test_truth_ratio_takes_the_geometric_mean_of_the_lies():
    lies = [record("a", [-1.0]), record("a", [-3.0], answer=1)]
    assert truth_ratio([record("a", [0.0])], lies) == pytest.approx([math.exp(-2)])


def test_an_unknown_summary_is_refused_with_a_suggestion():
    with pytest.raises(ValueError, match="did you mean 'forget'"):
        truth_ratio([], [], summary="forgett")


@pytest.mark.parametrize(
    ("pattern", "strength"), [("1111", 1.0), ("0111", 0.75), ("1011", 0.5), ("1101", 0.25), ("1110", 0.0), ("0", 0.0)]
)
def test_extraction_strength_is_set_by_the_last_miss(pattern, strength):
    assert extraction_strength(hits(pattern)) == pytest.approx([strength])


def test_extraction_strength_under_the_peers_convention_has_a_floor_and_no_last_token():
    assert extraction_strength(hits("11100"), include_last=False, floor=True) == pytest.approx([0.25])
    assert extraction_strength(hits("11110"), include_last=False, floor=True) == pytest.approx([1.0])
    assert np.isnan(extraction_strength(hits("1"), include_last=False))[0]


def test_exact_memorization_counts_hits():
    assert exact_memorization(hits("1101")) == pytest.approx([0.75])
    assert exact_memorization(hits("1110"), include_last=False) == pytest.approx([1.0])


def test_the_oracle_against_itself_has_forget_quality_one():
    rows = np.random.default_rng(0).random(30)
    assert forget_quality(rows, rows) == 1.0
    assert forget_quality(rows, rows + 10) < 1e-6


def test_model_utility_is_the_harmonic_mean_of_means():
    assert model_utility([np.array([0.2, 0.6, np.nan]), 0.4, np.array([0.4])]) == pytest.approx(0.4)
    assert model_utility([np.array([0.9]), np.array([0.0])]) == 0.0
    assert math.isnan(model_utility([np.array([0.9]), np.array([np.nan])]))


def test_rouge_averages_samples_and_leaves_rows_without_reference_unscored():
    said = [
        GenerationRecord("a", 0, "the cat sat", 3, "the cat sat"),
        GenerationRecord("a", 1, "dogs", 1, "the cat sat"),
        GenerationRecord("b", 0, "anything", 1, ""),
    ]
    values = rouge(said)
    assert values[0] == pytest.approx(0.5)
    assert np.isnan(values[1])
