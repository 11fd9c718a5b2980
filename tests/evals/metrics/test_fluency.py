"""Fluency: a model that has collapsed must show as one."""

import math

import numpy as np
import pytest

from llm_forget.evals.metrics.generated_perplexity import generated_perplexity
from llm_forget.evals.metrics.repetition import repetition
from llm_forget.evals.metrics.silence import silence
from llm_forget.evals.records import GenerationRecord, TokenRecord


def said(text, row="a", sample=0):
    return GenerationRecord(row, sample, text, 1)


def judged(logps, row="a", sample=0):
    return TokenRecord(row, sample, np.array(logps, dtype=np.float32), np.ones(len(logps), dtype=bool))


def test_a_text_that_never_repeats_four_words_has_no_repetition():
    assert repetition([said("the cat sat on the mat and the cat sat down")]) == [0]


def test_one_word_over_and_over_is_almost_all_repetition():
    assert repetition([said("no " * 23)]) == pytest.approx([1 - 1 / 20])
    assert repetition([said("!" * 23)]) == pytest.approx([1 - 1 / 20])


def test_repetition_counts_ngrams_and_ignores_case():
    assert repetition([said("A b c. a B C.")], n=2) == pytest.approx([1 - 4 / 7])  # ab bc c. .a | ab bc c. again


def test_a_text_too_short_to_repeat_itself_is_unscored():
    assert np.isnan(repetition([said(""), said("one two three", "b")])).all()


def test_repetition_of_samples_is_their_mean_or_their_worst():
    samples = [said("no no no no no", sample=0), said("one two three four", sample=1), said("", sample=2)]
    assert repetition(samples) == pytest.approx([0.25])
    assert repetition(samples, over="max") == pytest.approx([0.5])


def test_the_perplexity_under_a_uniform_judge_is_its_vocabulary_size():
    assert generated_perplexity([judged([-math.log(50)] * 7)]) == pytest.approx([50])


def test_perplexity_weighs_the_tokens_of_all_samples_equally():
    assert generated_perplexity([judged([-1.0] * 3), judged([-5.0], sample=1)]) == pytest.approx([math.exp(2)])


def test_an_empty_text_is_unscored_with_others_and_alone():
    values = generated_perplexity([judged([]), judged([], "b"), judged([0.0], "b", 1)])
    assert np.isnan(values[0])
    assert values[1] == 1


def test_empty_answers_are_silent_and_their_repetition_is_unscored():
    rows = [said("", "a"), said(" .!\n", "b"), said("Nein.", "c"), said("", "d", 0), said("42", "d", 1)]
    assert silence(rows).tolist() == [1, 1, 0, 0.5]
    assert np.isnan(repetition(rows)).all()
