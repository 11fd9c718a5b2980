"""Whether the unlearned model can be distinguished from the oracle, a model that never saw the forget rows."""

from __future__ import annotations

from llm_forget.evals.metrics._registry import metric
from llm_forget.evals.stats import Rows, ks_p_value


@metric(paper="arXiv:2401.06121")
def forget_quality(truth_ratio: Rows, oracle_truth_ratio: Rows) -> float:
    """Return the p-value of the two-sample KS test between the truth ratios of this model and of the oracle.

    Source: TOFU, section 3.2. The truth ratios are those of the forget rows, with ``summary: ratio``. The p-value is in
    [0, 1], and 1 for the oracle itself. Above 0.05, the test finds no difference at that level. The p-value falls with
    the number of rows, so compare it only at equal n.
    """
    return ks_p_value(truth_ratio, oracle_truth_ratio)
