"""Whether the unlearned model is distinguishable from a model that never saw the rows."""

from __future__ import annotations

from llm_forget.evals.metrics._registry import metric
from llm_forget.evals.stats import Rows, ks_p_value


@metric(paper="arXiv:2401.06121")
def forget_quality(truth_ratio: Rows, oracle_truth_ratio: Rows) -> float:
    """P-value of the two-sample KS test between truth ratios R on the forget rows of this model and of the oracle.

    In [0, 1], TOFU section 3.2; above 0.05 the two are indistinguishable at that level, 1 for the oracle itself. It
    falls with the number of rows: compare only at equal n. Use the *ratio* summary as input; min(R, 1/R) hides on
    which side of 1 a row lies.
    """
    return ks_p_value(truth_ratio, oracle_truth_ratio)
