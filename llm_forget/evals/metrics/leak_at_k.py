"""The expected score of the best of k samples, that is, of the sample that leaks most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import comb

import numpy as np

from llm_forget.core.errors import EvaluationError
from llm_forget.evals.metrics._registry import METRICS, metric
from llm_forget.evals.records import GenerationRecord, by_row
from llm_forget.evals.stats import Rows


@metric(paper="arXiv:2511.04934")
def leak_at_k(generations: Sequence[GenerationRecord], *, k: int | None = None, score: str = "rouge") -> Rows:
    """Return leak@k: the expected maximum of the scores of k samples (by default ROUGE-L recall); ``[N]``.

    The estimate from n >= k samples is the mean, over all subsets of k samples, of the largest score in a subset. It is
    unbiased, like that of pass@k. For k = 1 it is the mean score. For k = n it is the maximum: the worst case over the
    phrasings of a probe with ``asks``. A row with an unscored sample is unscored. If k is larger than the number of
    samples, use `discoverable_extraction`.

    Args:
        k: number of samples that an attacker draws; default: all samples.
        score: a metric that needs only generations and returns one number per row, such as ``fact_leak``; used with its
            default parameters.

    Raises EvaluationError if a row has fewer than k samples, or if the score needs more than generations.
    """
    entry = METRICS.get(score)
    if set(entry.inputs) - entry.optional != {"generations"} or entry.name == "leak_at_k":
        raise EvaluationError(f"metric 'leak_at_k' cannot use score '{score}'; use one of generations, such as 'rouge'")
    # Make each sample a row, so that the metric scores it separately.
    alone = [replace(record, id=str(place), sample=0) for place, record in enumerate(generations)]
    values = dict(zip((record.key for record in generations), entry.function(alone), strict=True))
    return np.array([_of_row(row, [values[r.key] for r in samples], k) for row, samples in by_row(generations).items()])


def _of_row(row: str, scores: Sequence[float], k: int | None) -> float:
    n = len(scores)
    k = n if k is None else k
    if not 1 <= k <= n:
        raise EvaluationError(f"leak@{k}: k must be 1 to {n}, the samples of row '{row}'; change k or samples")
    return expected_maximum(scores, k)


def expected_maximum(scores: Sequence[float], k: int) -> float:
    """Return the mean, over all subsets of ``k`` scores, of the largest score in a subset; NaN if a score is NaN."""
    n = len(scores)
    weights = [comb(i - 1, k - 1) / comb(n, k) for i in range(1, n + 1)]  # [n]
    return float(np.dot(weights, np.sort(np.asarray(scores, dtype=np.float64))))
