"""Membership inference: the true-positive rate at a low false-positive rate."""

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
    """Return the share of members found at a false-positive rate of at most ``at_fpr``, with interval; in [0, 1].

    The share is about ``at_fpr`` if members and non-members are indistinguishable, and 1 if they are separated. Unlike
    the AUC, it shows whether an attack identifies a few rows with certainty. With fewer than 100 non-members, a rate of
    1 % allows no false positive. ``at_fpr`` is in [0, 1); the other parameters are those of `membership_auc`.
    """
    settings = {"k": k, "include_last": include_last}
    samples = scores(members, attack, **settings), scores(nonmembers, attack, **settings)
    return tpr_with_interval(*samples, at_fpr, (row_subjects(members), row_subjects(nonmembers)))
