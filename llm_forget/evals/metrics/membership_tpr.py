"""Membership inference: true-positive rate at a low false-positive rate."""

from __future__ import annotations

from collections.abc import Sequence

from llm_forget.evals.membership import scores
from llm_forget.evals.metrics._registry import metric
from llm_forget.evals.records import TokenRecord, row_subjects
from llm_forget.evals.stats import Estimate, tpr_with_interval


@metric(paper="arXiv:2112.03570", two_sided=True)
def membership_tpr(
    members: Sequence[TokenRecord],
    nonmembers: Sequence[TokenRecord],
    *,
    attack: str = "min_k",
    k: float = 0.4,
    include_last: bool = True,
    at_fpr: float = 0.01,
) -> Estimate:
    """Share of members found at a false-positive rate of at most ``at_fpr``, with interval; in [0, 1].

    About ``at_fpr`` if members and non-members are indistinguishable, 1 if they are separated. Unlike the AUC, it shows
    whether an attack identifies a few rows with certainty. At 1 %, no false positive is allowed with fewer than 100
    non-members. ``at_fpr`` is in [0, 1); the other parameters are those of `membership_auc`.
    """
    settings = {"k": k, "include_last": include_last}
    samples = scores(members, attack, **settings), scores(nonmembers, attack, **settings)
    return tpr_with_interval(*samples, at_fpr, (row_subjects(members), row_subjects(nonmembers)))
