"""Combined score of retained knowledge."""

from __future__ import annotations

from collections.abc import Sequence

from llm_forget.evals.metrics._registry import metric
from llm_forget.evals.stats import Rows, harmonic_mean, mean


@metric(paper="arXiv:2401.06121", utility=True)
def model_utility(components: Sequence[Rows | float]) -> float:
    """Harmonic mean of the components' means, in [0, 1].

    TOFU (section 3.1) combines nine: {probability, ROUGE, truth ratio} x {retain, real authors, world facts}. The
    utility is 0 if a component is 0, and unscored if a component has no scored rows.
    """
    return harmonic_mean([mean(component) for component in components])
