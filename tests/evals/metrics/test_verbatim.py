"""Verbatim leakage: what is repeated, in words, pieces and characters, and how many samples it takes."""

import itertools
import math
import random
import time

import numpy as np
import pytest
import torch

from llm_forget.evals.metrics.character_overlap import character_overlap
from llm_forget.evals.metrics.discoverable_extraction import discoverable_extraction
from llm_forget.evals.metrics.leak_at_k import expected_maximum, leak_at_k
from llm_forget.evals.metrics.longest_common_subsequence import longest_common_subsequence
from llm_forget.evals.metrics.longest_common_substring import longest_common_substring
from llm_forget.evals.metrics.ngram_overlap import ngram_overlap
from llm_forget.evals.metrics.rouge import rouge
from llm_forget.evals.records import GenerationRecord, TokenRecord

OVERLAPS = [longest_common_substring, longest_common_subsequence, ngram_overlap, character_overlap]
TEXT = "It was on a dreary night of November that I beheld the accomplishment of my toils, and the rain pattered."


def said(text, reference=TEXT, row="a", sample=0):
    return GenerationRecord(row, sample, text, 1, reference)


def answer(*logps, row="a"):
    return TokenRecord(row, 0, np.array(logps, dtype=np.float32), np.ones(len(logps), dtype=bool))


@pytest.mark.parametrize("metric", OVERLAPS)
def test_the_whole_reference_scores_fully_and_an_empty_text_zero(metric):
    whole = {"normalise": True} if "longest" in metric.__name__ else {}
    assert metric([said(TEXT)], **whole) == pytest.approx([1])
    assert metric([said("")], **whole) == pytest.approx([0])


@pytest.mark.parametrize("metric", OVERLAPS)
def test_a_row_without_reference_is_unscored(metric):
    assert np.isnan(metric([said("anything", "")])).all()


@pytest.mark.parametrize("metric", OVERLAPS)
def test_samples_of_a_row_are_averaged_or_the_worst_is_taken(metric):
    both = [said(TEXT, sample=0), said("", sample=1), said("", row="b")]
    full = metric([said(TEXT)])[0]
    assert metric(both).tolist() == [full / 2, 0]
    assert metric(both, over="max").tolist() == [full, 0]
    with pytest.raises(ValueError, match="did you mean 'max'"):
        metric(both, over="maxi")


def test_a_substring_has_no_gaps_and_a_subsequence_may():
    record = [said("the red cat sat and the dog ran", "The cat sat; the dog ran.")]
    assert longest_common_substring(record) == [3]  # the dog ran
    assert longest_common_subsequence(record) == [6]
    assert longest_common_subsequence(record, normalise=True) == [1]


def test_words_ignore_case_and_punctuation_of_every_script():
    record = [said("Don’t — Ünter ДЕРЕВОМ!", "don't unter, ünter деревом")]
    assert longest_common_substring(record) == [2]
    assert longest_common_subsequence(record) == [4]


@pytest.mark.parametrize("seed", range(20))
def test_longest_runs_are_those_of_brute_force(seed):
    generator = random.Random(seed)
    left, right = (generator.choices("abc", k=generator.randint(1, 9)) for _ in range(2))
    record = [said(" ".join(left), " ".join(right))]
    runs = {tuple(right[i:j]) for i, j in itertools.combinations(range(len(right) + 1), 2)}
    gapped = {c for k in range(len(right) + 1) for c in itertools.combinations(right, k)}
    best = max((len(r) for r in runs if r in {tuple(left[i : i + len(r)]) for i in range(len(left))}), default=0)
    assert longest_common_substring(record) == [best]
    ours = {c for k in range(len(left) + 1) for c in itertools.combinations(left, k)}
    assert longest_common_subsequence(record) == [max(len(c) for c in gapped & ours)]


def test_rouge_l_recall_is_the_normalised_subsequence_where_stemming_changes_nothing():
    generator = random.Random(0)
    texts = [" ".join(generator.choices(["red", "cat", "sun", "box"], k=12)) for _ in range(20)]
    records = [said(a, b, str(i)) for i, (a, b) in enumerate(itertools.pairwise(texts))]
    np.testing.assert_allclose(longest_common_subsequence(records, normalise=True), rouge(records))


def test_ngrams_count_every_place_of_the_reference():
    record = [said("x a b c y", "a b c a b c d")]  # abc bca cab abc bcd
    assert ngram_overlap(record, n=3) == pytest.approx([2 / 5])
    assert np.isnan(ngram_overlap(record, n=8)).all()


def test_thirteen_words_in_a_row_are_the_least_that_counts():
    words = TEXT.split()
    assert ngram_overlap([said(" ".join(words[:13]))]) == pytest.approx([1 / (len(words) - 12)])
    assert ngram_overlap([said(" ".join(words[:12]))]) == [0]


def test_characters_are_covered_by_runs_of_the_length_or_longer():
    reference = "abcdefghij"
    assert character_overlap([said("xxcdefgxx", reference)], length=5) == pytest.approx([0.5])
    assert character_overlap([said("abcde ghij", reference)], length=5) == pytest.approx([0.5])
    assert character_overlap([said("abcdefxfghij", reference)], length=5) == pytest.approx([1])  # two that overlap
    assert character_overlap([said("abcd fghi", reference)], length=5) == [0]
    assert character_overlap([said("xxcdefgxx", reference)], length=5, summary="any") == [1]
    assert np.isnan(character_overlap([said(reference, reference)])).all()  # shorter than 50


def test_line_breaks_of_another_edition_do_not_count():
    assert character_overlap([said(TEXT.replace(" ", "\n"))]) == [1]


@pytest.mark.slow
def test_two_thousand_words_take_a_few_seconds_at_most(shared):
    text = (shared / "data/frankenstein/frankenstein_pg84.txt").read_text(encoding="utf-8").split()
    reference, generated = " ".join(text[5000:7000]), " ".join(text[4000:5500] + text[9000:9500])
    start = time.process_time()
    runs = [metric([said(generated, reference)])[0] for metric in OVERLAPS]
    assert time.process_time() - start < 5
    assert runs[0] >= 500
    assert runs[2] > 0.24
    assert 0.2 < runs[3] < 0.3


def test_extraction_needs_as_many_queries_as_the_probability_asks():
    one, two = answer(math.log(0.6)), answer(math.log(0.6), math.log(0.4), row="b")  # 0.6 and 0.24
    assert discoverable_extraction([one, two], n=1, p=0.5).tolist() == [1, 0]
    np.testing.assert_allclose(discoverable_extraction([one, two], n=3, summary="probability"), [0.936, 1 - 0.76**3])
    assert discoverable_extraction([one, two], summary="queries").tolist() == [1, 3]  # 1 - 0.76^2 = 0.42
    assert discoverable_extraction([one], p=0.75, summary="queries") == [2]


def test_extraction_is_exact_for_the_certain_the_unlikely_and_the_impossible():
    rows = [answer(0.0), answer(*[-10.0] * 10, row="b"), answer(*[-100.0] * 10, row="c"), answer(row="d")]
    np.testing.assert_allclose(discoverable_extraction(rows, summary="queries")[:2], [1, math.log(2) * math.exp(100)])
    assert discoverable_extraction(rows, summary="queries")[2] == math.inf
    probability = discoverable_extraction(rows, summary="probability")
    np.testing.assert_allclose(probability[:3], [1, 100 * math.exp(-100), 0])
    assert discoverable_extraction(rows)[:3].tolist() == [1, 0, 0]
    assert np.isnan(probability[3])


def test_extraction_after_a_prefix_counts_the_tokens_after_it():
    row = [answer(-5.0, -5.0, -1.0, -2.0)]
    after = {"prefix": 0.5, "n": 1, "summary": "probability"}
    np.testing.assert_allclose(discoverable_extraction(row, **after), [math.exp(-3)])
    np.testing.assert_allclose(discoverable_extraction(row, **{**after, "prefix": 2.0}, suffix=1), [math.exp(-1)])
    np.testing.assert_allclose(
        discoverable_extraction(row, **{**after, "prefix": 2.0}, include_last=False), [math.exp(-1)]
    )
    assert np.isnan(discoverable_extraction(row, prefix=2.0, suffix=3)).all()
    assert np.isnan(discoverable_extraction(row, prefix=4.0)).all()


def test_extraction_refuses_parameters_out_of_range():
    with pytest.raises(ValueError, match="p between 0 and 1"):
        discoverable_extraction([answer(-1.0)], p=1.0)
    with pytest.raises(ValueError, match="did you mean 'queries'"):
        discoverable_extraction([answer(-1.0)], summary="query")


@pytest.mark.slow
def test_probability_of_extraction_is_the_share_of_samples_that_repeat_the_answer(tiny_model):
    model = tiny_model(vocab_size=6, pad_token_id=None, bos_token_id=None, eos_token_id=None, initializer_range=0.4)
    prompt, target = torch.tensor([[3]]), [1, 4]
    with torch.inference_mode():
        torch.manual_seed(0)
        drawn = model.generate(
            prompt.expand(6000, 1), attention_mask=torch.ones(6000, 1), do_sample=True, top_k=0, max_new_tokens=2
        )[:, 1:]
        logps = model(torch.tensor([[3, *target]])).logits[0, :2].log_softmax(-1)
    record = answer(*[float(logps[i, token]) for i, token in enumerate(target)])
    (one,) = discoverable_extraction([record], n=1, summary="probability")
    hits = (drawn == torch.tensor(target)).all(-1).float()
    assert one == pytest.approx(float(hits.mean()), abs=4 * math.sqrt(one / 6000))
    (ten,) = discoverable_extraction([record], n=10, summary="probability")
    assert ten == pytest.approx(float(hits.view(-1, 10).amax(-1).mean()), abs=4 * math.sqrt(ten * (1 - ten) / 600))


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_expected_maximum_is_the_mean_over_all_subsets(k):
    scores = [0.3, 0.1, 0.9, 0.9, 0.2]
    subsets = list(itertools.combinations(scores, k))
    assert expected_maximum(scores, k) == pytest.approx(np.mean([max(s) for s in subsets]))


def test_leak_at_one_is_the_mean_and_at_all_the_best_rouge():
    texts = ["", "a b", "a b c d"]
    samples = [said(t, "a b c d", row, i) for row in "xy" for i, t in enumerate(texts)]
    np.testing.assert_allclose(leak_at_k(samples, k=1), [0.5, 0.5])
    np.testing.assert_allclose(leak_at_k(samples, k=2), [(0.5 + 1 + 1) / 3] * 2)
    np.testing.assert_allclose(leak_at_k(samples), [1, 1])
    np.testing.assert_allclose(leak_at_k(samples, k=1, score="longest_common_substring"), [2, 2])


def test_leak_refuses_too_few_samples_and_scores_of_something_else():
    with pytest.raises(ValueError, match=r"leak@2: k must be 1 to 1, the samples of row 'a'"):
        leak_at_k([said(TEXT)], k=2)
    with pytest.raises(ValueError, match="cannot use score 'probability'"):
        leak_at_k([said(TEXT)], score="probability")


def test_leak_of_a_row_without_reference_is_unscored():
    assert np.isnan(leak_at_k([said("anything", "")])).all()
