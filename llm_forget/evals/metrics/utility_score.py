"""Combined score of retained utility relative to the target."""

from __future__ import annotations

from collections.abc import Sequence

from llm_forget.evals.metrics._registry import metric
from llm_forget.evals.stats import Rows, harmonic_mean, mean


@metric(paper="arXiv:2506.12618", one_choice=True)
def utility_score(components: Sequence[Rows | float], before_components: Sequence[Rows | float]) -> float:
    """Harmonic mean over components of min(1, mean of the model / mean of the target); in [0, 1], 1 for the target.

    One choice of several: open-unlearning (appendix F.1) uses model utility and the fluency of the answers to the
    forget questions, relative to the target. A component that improved counts as 1. It is unscored if the target is
    missing or has a component of 0.

    Args:
        components: scores of at least 0; higher is better.
    """
    values = [mean(value) for value in components]
    earlier = [mean(value) for value in before_components]
    if not all(value > 0 for value in earlier):
        return float("nan")
    shares = (value / then for value, then in zip(values, earlier, strict=True))
    return harmonic_mean([share if share < 1 or share != share else 1.0 for share in shares])
