"""KL(oracle || model) from shortened distributions is exact with the whole vocabulary, and never too high."""

import json
import math

import numpy as np
import pytest

from llm_forget.evals.distributions import Distributions, kl_lower_bound
from llm_forget.evals.metrics.kl_to_oracle import kl_to_oracle
from llm_forget.evals.records import TokenRecord


def log_softmax(logits):
    return logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)


def shortened(logps, k):
    """The k most likely tokens of ``[n, V]``."""
    order = np.argsort(-logps, axis=-1)
    rest = [
        np.logaddexp.reduce(row[places]) if len(places) else -np.inf
        for row, places in zip(logps, order[:, k:], strict=True)
    ]
    tokens = order[:, :k].astype(np.int32)
    return Distributions(tokens, np.take_along_axis(logps, tokens, -1).astype(np.float32), np.array(rest, np.float32))


def record(logps, k, row="a"):
    n = len(logps)
    return TokenRecord(row, 0, logps[:, 0].astype(np.float32), np.ones(n, bool), top=shortened(logps, k))


def pair(vocabulary, n=6, seed=0, scale=2.0):
    draw = np.random.default_rng(seed)
    return log_softmax(draw.normal(size=(n, vocabulary)) * scale), log_softmax(
        draw.normal(size=(n, vocabulary)) * scale
    )


def full(p, q):
    return (np.exp(p) * (p - q)).sum(-1)


@pytest.mark.parametrize("k", [7, 50])
def test_with_the_whole_vocabulary_it_is_the_divergence(k):
    p, q = pair(7)
    assert kl_lower_bound(shortened(p, k), shortened(q, k)) == pytest.approx(full(p, q), rel=1e-5)
    assert kl_to_oracle([record(q, k)], [record(p, k)]) == pytest.approx([full(p, q).mean()], rel=1e-5)


def test_a_known_case():
    p, q = np.log([[0.5, 0.25, 0.125, 0.125]]), np.log([[0.25, 0.25, 0.4, 0.1]])
    # One token each: the oracle's 0 and the model's 2, whose rest of 0.6 may hold the 0.5 of token 0.
    assert kl_lower_bound(shortened(p, 1), shortened(q, 1)) == pytest.approx([0.0], abs=1e-6)
    # The oracle stores 0 and 1, the model 2 and 0: token 1 has at most 0.35 in the model, and the others then 0.4.
    stored = Distributions(np.array([[2, 0]], np.int32), np.log([[0.4, 0.25]]).astype(np.float32), np.log([0.35]))
    expected = 0.5 * math.log(0.5 / 0.25) + 0.25 * math.log(0.25 / 0.35) + 0.25 * math.log(0.25 / 0.4)
    assert kl_lower_bound(shortened(p, 2), stored) == pytest.approx([expected], rel=1e-5)


def test_a_token_of_the_oracle_that_the_model_does_not_store_counts_with_no_more_than_the_rest_of_the_model():
    p, q = np.log([[0.9, 0.05, 0.05]]), np.log([[0.01, 0.98, 0.01]])
    # The oracle stores token 0, the model token 1; the model gives token 0 at most 0.02.
    expected = 0.9 * math.log(0.9 / 0.02) + 0.1 * math.log(0.1 / 0.98)
    assert kl_lower_bound(shortened(p, 1), shortened(q, 1)) == pytest.approx([expected], rel=1e-5)


@pytest.mark.parametrize("k", [1, 4, 32, 256])
def test_on_a_large_vocabulary_it_is_never_too_high(k):
    p, q = pair(2000, seed=k, scale=4.0)
    bound, exact = kl_lower_bound(shortened(p, k), shortened(q, k)), full(p, q)
    assert (bound <= exact + 1e-5).all()
    assert (bound >= -1e-6).all()


def test_it_grows_with_the_number_of_tokens_to_the_divergence():
    p, noise = pair(2000, scale=4.0)
    q = log_softmax(p + noise / 4)  # a model that differs from the oracle by noise in each logit
    means = [kl_to_oracle([record(q, k)], [record(p, k)])[0] for k in (8, 64, 256, 2000)]
    assert means == sorted(means)
    assert means[2] > 0.9 * means[3]
    assert means[3] == pytest.approx(full(p, q).mean(), rel=1e-5)


def test_the_oracle_has_no_distance_to_itself_and_nan_is_unscored():
    p, q = pair(50)
    assert kl_to_oracle([record(p, 4)], [record(p, 4)]) == pytest.approx([0.0], abs=1e-7)
    broken = np.full_like(p, np.nan)
    assert np.isnan(kl_to_oracle([record(broken, 4)], [record(p, 4)]))
    assert np.isnan(kl_to_oracle([record(q, 4)], [record(broken, 4)]))


def test_distributions_survive_the_record_file():
    p, _ = pair(50)
    before = record(p, 8)
    after = TokenRecord.from_dict(json.loads(json.dumps(before.to_dict())))
    assert np.array_equal(after.top.tokens, before.top.tokens)
    assert np.array_equal(after.top.logps, before.top.logps)
    assert np.array_equal(after.top.rest, before.top.rest)
    assert "top" not in TokenRecord("a", 0, before.logps, before.hits).to_dict()


def test_a_probe_without_top_is_refused():
    p, _ = pair(5)
    plain = TokenRecord("a", 0, p[:, 0].astype(np.float32), np.ones(len(p), bool))
    with pytest.raises(ValueError, match="needs the key 'top'"):
        kl_to_oracle([plain], [plain])
