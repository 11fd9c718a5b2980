"""The harmonic mean of several scores."""

from __future__ import annotations

from collections.abc import Sequence

from llm_forget.core.errors import EvaluationError
from llm_forget.evals.metrics._registry import metric
from llm_forget.evals.stats import Rows, harmonic_mean, mean


@metric(paper="arXiv:2506.12618", one_choice=True)
def aggregate(scores: Sequence[Rows | float]) -> float:
    """Return the harmonic mean of scores in [0, 1], where 1 is best; 0 if one is 0, unscored if one is unscored.

    One choice of several ways to combine scores. Table 3 of open-unlearning combines `memorization_score`,
    `privacy_score` and `utility_score` in this way. Use it to rank methods, not to show that something was forgotten,
    because a high score can hide a low one. Even the oracle (a model that never saw the forget rows) scores below 1.
    Raises EvaluationError if a score is outside [0, 1].
    """
    values = [mean(score) for score in scores]
    for score in values:
        if score < 0 or score > 1:
            raise EvaluationError(f"metric 'aggregate' needs scores in [0, 1], not {score:g}; use lines of scores")
    return harmonic_mean(values)
