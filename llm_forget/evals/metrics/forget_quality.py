"""Whether the unlearned model is distinguishable from a model that never saw the rows."""

from __future__ import annotations

from llm_forget.evals.metrics._registry import metric
from llm_forget.evals.stats import Rows, ks_p_value


@metric(paper="arXiv:2401.06121")
def forget_quality(truth_ratio: Rows, oracle_truth_ratio: Rows) -> float:
    """P-value of the two-sample KS test between truth ratios R on the forget rows of this model and of the oracle.

    In [0, 1] (TOFU, section 3.2): 1 for the oracle itself, above 0.05 if the test finds no difference at that level. It
    falls with the number of rows, so compare it only at equal n. Use the truth ratio's summary *ratio* as input;
    *forget*, which is min(R, 1/R), hides on which side of 1 a row lies.
    """
    return ks_p_value(truth_ratio, oracle_truth_ratio)
