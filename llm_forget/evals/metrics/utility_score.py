"""A combined score of the utility that the model retains, relative to the target (the model before unlearning)."""

from __future__ import annotations

from collections.abc import Sequence

from llm_forget.evals.metrics._registry import metric
from llm_forget.evals.stats import Rows, harmonic_mean, mean


@metric(paper="arXiv:2506.12618", one_choice=True)
def utility_score(components: Sequence[Rows | float], before_components: Sequence[Rows | float]) -> float:
    """Return the harmonic mean over components of min(1, mean of the model / mean of the target); in [0, 1].

    The score is 1 for the target. Components are scores of at least 0. One choice of several ways to measure utility:
    open-unlearning (appendix F.1) uses model utility and the fluency of answers to the forget questions. The score is
    missing (NaN) if the target is missing or one of its components is 0.
    """
    values = [mean(value) for value in components]
    earlier = [mean(value) for value in before_components]
    if not all(value > 0 for value in earlier):
        return float("nan")
    shares = (value / then for value, then in zip(values, earlier, strict=True))
    return harmonic_mean([share if share < 1 or share != share else 1.0 for share in shares])
