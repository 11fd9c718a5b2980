"""A combined score that is high if the model memorises little of the forget rows."""

from __future__ import annotations

from collections.abc import Sequence

from llm_forget.evals.metrics._registry import metric
from llm_forget.evals.stats import Rows, harmonic_mean, mean


@metric(paper="arXiv:2506.12618", one_choice=True)
def memorization_score(measures: Sequence[Rows | float]) -> float:
    """Return the harmonic mean of 1 - (mean of each measure), in [0, 1]; 1 if no measure finds any memorization.

    One choice of several ways to combine measures in [0, 1], where 1 means memorised. open-unlearning (appendix F.1)
    combines extraction strength, exact memorization, the probability of the paraphrased answer and `truth_ratio` with
    ``summary: known``. `truth_ratio` is 0.5 for a model without knowledge, so even an oracle scores well below 1. The
    score is 0 if the mean of a measure is 1, and unscored if a measure has no scored rows. Raises EvaluationError if a
    measure is above 1.
    """
    return harmonic_mean([1 - mean(measure) for measure in measures])
