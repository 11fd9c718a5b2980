"""A combined score of the knowledge that the model retains."""

from __future__ import annotations

from collections.abc import Sequence

from llm_forget.evals.metrics._registry import metric
from llm_forget.evals.stats import Rows, harmonic_mean, mean


@metric(paper="arXiv:2401.06121", utility=True)
def model_utility(components: Sequence[Rows | float]) -> float:
    """Return the harmonic mean of the components' means, in [0, 1]; 0 if one is 0, unscored if one has no scored rows.

    TOFU (section 3.1) has nine components: {probability, ROUGE, truth ratio} x {retain, real authors, world facts}.
    """
    return harmonic_mean([mean(component) for component in components])
