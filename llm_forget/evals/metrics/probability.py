"""The geometric mean of the probabilities of an answer's tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llm_forget.evals.metrics._registry import metric
from llm_forget.evals.records import TokenRecord, row_means
from llm_forget.evals.stats import Rows


@metric(paper="arXiv:2401.06121")
def probability(records: Sequence[TokenRecord]) -> Rows:
    """Return the geometric mean of the token probabilities of the answer, exp(-mean token NLL); ``[N]``, in [0, 1].

    This is P(a|q)^(1/|a|) of TOFU (section 3.1). If a row has several answers, their values are averaged. A row without
    target tokens is unscored.
    """
    return row_means(records, mean_probability)


def mean_probability(record: TokenRecord) -> float:
    """Return exp of the mean token log-probability of one answer; NaN without target tokens."""
    return float(np.exp(record.logps.mean(dtype=np.float64))) if record.n else float("nan")
