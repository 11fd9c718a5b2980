"""How much of what the model was good at before is left, over several measures of it."""

from __future__ import annotations

from collections.abc import Sequence

from llm_forget.evals.metrics._registry import metric
from llm_forget.evals.stats import Rows, harmonic_mean, mean


@metric(paper="arXiv:2506.12618")
def utility_score(components: Sequence[Rows | float], before_components: Sequence[Rows | float]) -> float:
    """Harmonic mean over components of min(1, mean / mean before), in [0, 1]; 1 for the model before.

    One choice among others: open-unlearning (appendix F.1) takes model utility and the fluency of the answers to the
    forget questions, and divides by the model before. A component that rose counts as kept, not as more. Unscored
    without the model before, and where a component was 0 before, since nothing could be lost.

    Args:
        components: each at least 0, higher = better.
        before_components: the same of the model before.
    """
    values = [_mean(value) for value in components]
    earlier = [_mean(value) for value in before_components]
    if not all(value > 0 for value in earlier):
        return float("nan")
    shares = (value / then for value, then in zip(values, earlier, strict=True))
    return harmonic_mean([share if share < 1 or share != share else 1.0 for share in shares])


def _mean(value: Rows | float) -> float:
    return value if isinstance(value, float) else mean(value)
