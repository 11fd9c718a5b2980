"""How close the AUCs of membership attacks are to the AUCs on the oracle, a model that never saw the forget rows."""

from __future__ import annotations

from collections.abc import Sequence

from llm_forget.core.errors import EvaluationError
from llm_forget.evals.metrics._registry import metric
from llm_forget.evals.stats import Rows, harmonic_mean, mean


@metric(paper="arXiv:2506.12618", one_choice=True)
def privacy_score(aucs: Sequence[Rows | float], oracle_aucs: Sequence[Rows | float]) -> float:
    """Return the harmonic mean of s = 1 - |AUC - AUC_oracle| / max(AUC_oracle, 1 - AUC_oracle) over attacks; in [0, 1].

    The score is 1 for the oracle. s is 0 if the AUC is 0 or 1, whichever is farther from the oracle's AUC. A low AUC
    lowers s too, because a model that avoids the rows reveals them. One choice of several ways to combine AUCs:
    open-unlearning (appendix F.1) combines loss, zlib, min-k and min-k++ in this way, but publishes no formula for s,
    so do not compare with its numbers. It is unscored without an oracle. Raises EvaluationError if an AUC is outside
    [0, 1].
    """
    model_aucs, other_aucs = ([mean(auc) for auc in side] for side in (aucs, oracle_aucs))
    for auc in (*model_aucs, *other_aucs):
        if auc < 0 or auc > 1:
            raise EvaluationError(f"metric 'privacy_score' needs AUCs in [0, 1], not {auc:g}; use membership_auc")
    pairs = zip(model_aucs, other_aucs, strict=True)
    return harmonic_mean([1 - abs(auc - oracle) / max(oracle, 1 - oracle) for auc, oracle in pairs])
