"""Geometric mean of the probabilities of an answer's tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llm_forget.evals.metrics._registry import metric
from llm_forget.evals.records import TokenRecord, row_means
from llm_forget.evals.stats import Rows


@metric(paper="arXiv:2401.06121")
def probability(records: Sequence[TokenRecord]) -> Rows:
    """Geometric mean of the answer's token probabilities, exp(-mean token NLL); ``[N]`` in [0, 1].

    This is TOFU's P(a|q)^(1/|a|) (section 3.1). The answers of a row are averaged; a row without targets is unscored.
    """
    return row_means(records, mean_probability)


def mean_probability(record: TokenRecord) -> float:
    """Return exp of the mean token log-probability of one answer; NaN without target tokens."""
    return float(np.exp(record.logps.mean(dtype=np.float64))) if record.n else float("nan")
