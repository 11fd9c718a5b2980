"""Probability of the answer per token."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llm_forget.evals.metrics._registry import metric
from llm_forget.evals.records import TokenRecord, row_means
from llm_forget.evals.stats import Rows


@metric(paper="arXiv:2401.06121")
def probability(records: Sequence[TokenRecord]) -> Rows:
    """Geometric mean of the answer's token probabilities, exp(-mean token NLL); ``[N]`` in [0, 1].

    TOFU's P(a|q)^(1/|a|) (section 3.1). A row with several answers gets the mean over them; one without target tokens
    is unscored. 1 for a memorised answer, 1/V for a uniform model.
    """
    return row_means(records, mean_probability)


def mean_probability(record: TokenRecord) -> float:
    """exp of the mean log-probability of one answer; NaN without target tokens."""
    return float(np.exp(record.logps.mean(dtype=np.float64))) if record.n else float("nan")
