"""The probability of the correct answer among several given answers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llm_forget.evals.metrics._registry import metric
from llm_forget.evals.metrics.probability import mean_probability
from llm_forget.evals.records import TokenRecord, aligned
from llm_forget.evals.stats import Rows


@metric(paper="arXiv:2401.06121")
def probability_normalised(correct: Sequence[TokenRecord], perturbed: Sequence[TokenRecord]) -> Rows:
    """Return P(correct) / (P(correct) + sum of P(perturbed)); ``[N]``, in [0, 1].

    P is the length-normalised probability (metric ``probability``), and perturbed answers are false answers. This is
    TOFU's probability for real authors and world facts (section 3.1). A model without knowledge scores about
    1 / (1 + number of perturbed answers). A row is unscored if one of its answers has no target tokens.
    """
    rows = []
    for right, wrong in aligned(correct, perturbed):
        p_right = np.mean([mean_probability(record) for record in right])
        rows.append(p_right / (p_right + np.sum([mean_probability(record) for record in wrong])))
    return np.array(rows, dtype=np.float64)
