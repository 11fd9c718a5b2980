"""Combined score of how little the model memorises of the forget rows."""

from __future__ import annotations

from collections.abc import Sequence

from llm_forget.evals.metrics._registry import metric
from llm_forget.evals.stats import Rows, harmonic_mean, mean


@metric(paper="arXiv:2506.12618", one_choice=True)
def memorization_score(measures: Sequence[Rows | float]) -> float:
    """Harmonic mean of 1 - (mean of the measure), in [0, 1]; 1 if no measure finds any memorization.

    One choice of several: open-unlearning (appendix F.1) combines extraction strength, exact memorization, the
    probability of the paraphrased answer and the truth ratio P(correct) / (P(correct) + P(perturbed)), which is 0.5 for
    a model that knows nothing, so even the oracle is well below 1. The score is 0 if the mean of a measure is 1, and
    unscored if a measure has no scored rows.

    Args:
        measures: scores in [0, 1]; 1 means memorised.

    Raises:
        EvaluationError: a measure above 1.
    """
    return harmonic_mean([1 - mean(measure) for measure in measures])
