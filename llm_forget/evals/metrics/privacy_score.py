"""How near membership attacks come to what they find on the oracle, over several attacks."""

from __future__ import annotations

from collections.abc import Sequence

from llm_forget.core.errors import EvaluationError
from llm_forget.evals.metrics._registry import metric
from llm_forget.evals.stats import Rows, harmonic_mean, mean


@metric(paper="arXiv:2506.12618")
def privacy_score(aucs: Sequence[Rows | float], oracle_aucs: Sequence[Rows | float]) -> float:
    """Harmonic mean of s = 1 - |AUC - AUC_oracle| / max(AUC_oracle, 1 - AUC_oracle), in [0, 1]; 1 for the oracle.

    One choice among others: open-unlearning (appendix F.1) joins loss, zlib, min-k and min-k++ by their harmonic mean
    and says that each s is 1 when the model agrees with the retrained one, but gives no formula and no code. Ours has
    no free parameter and is 0 at the AUC farthest from the oracle's, above or below: rows that stand out as avoided
    are leakage too. Do not compare with that paper's numbers. Without an oracle it is unscored.

    Args:
        aucs: in [0, 1], one of each attack.
        oracle_aucs: the oracle's, in the same order.

    Raises:
        ValueError: an AUC outside [0, 1].
    """
    model_aucs, other_aucs = ([a if isinstance(a, float) else mean(a) for a in side] for side in (aucs, oracle_aucs))
    for auc in (*model_aucs, *other_aucs):
        if auc < 0 or auc > 1:
            raise EvaluationError(
                f"metric 'privacy_score' needs AUCs in [0, 1], not {auc:g}; take lines of membership_auc"
            )
    pairs = zip(model_aucs, other_aucs, strict=True)
    return harmonic_mean([1 - abs(auc - oracle) / max(oracle, 1 - oracle) for auc, oracle in pairs])
