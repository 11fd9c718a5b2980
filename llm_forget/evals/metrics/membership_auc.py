"""Membership inference: the AUC of forget rows against rows that the model was never trained on."""

from __future__ import annotations

from collections.abc import Sequence

from llm_forget.evals.membership import scores
from llm_forget.evals.metrics._registry import metric
from llm_forget.evals.records import TokenRecord, row_subjects
from llm_forget.evals.stats import Estimate, auc_with_interval


@metric(paper="arXiv:2407.06460", two_sided=True)
def membership_auc(
    members: Sequence[TokenRecord],
    nonmembers: Sequence[TokenRecord],
    *,
    attack: str = "min_k",
    k: float = 0.4,
    include_last: bool = True,
) -> Estimate:
    """Return the AUC of a membership attack on members and non-members, with interval; in [0, 1].

    Both must be of the same distribution. The AUC is 0.5 if the attack cannot distinguish them. A value near 0 reveals
    members too: they are then less likely than non-members. The value equals the AUC of open-unlearning, which negates
    both the scores and the classes.

    Args:
        attack: loss, zlib, min_k or min_k_plus_plus (`llm_forget.evals.membership`), or ``module:function``.
        k: share of the tokens that min_k and min_k_plus_plus use; other attacks ignore it.
        include_last: whether min_k and min_k_plus_plus use the end of the answer; open-unlearning does not.
    """
    settings = {"k": k, "include_last": include_last}
    samples = scores(members, attack, **settings), scores(nonmembers, attack, **settings)
    return auc_with_interval(*samples, (row_subjects(members), row_subjects(nonmembers)))
