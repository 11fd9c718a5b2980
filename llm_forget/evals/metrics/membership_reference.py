"""Membership inference with access to the oracle."""

from __future__ import annotations

from collections.abc import Sequence

from llm_forget.evals.membership import reference_scores
from llm_forget.evals.metrics._registry import metric
from llm_forget.evals.records import TokenRecord
from llm_forget.evals.stats import Estimate, auc_with_interval


@metric(paper="arXiv:2012.07805", two_sided=True)
def membership_reference(
    members: Sequence[TokenRecord],
    nonmembers: Sequence[TokenRecord],
    oracle_members: Sequence[TokenRecord],
    oracle_nonmembers: Sequence[TokenRecord],
) -> Estimate:
    """AUC of the mean token log-probability minus the oracle's, members against non-members, with interval; in [0, 1].

    0.5 for the oracle itself, because its scores are all 0. The subtraction removes the difficulty of each row.
    """
    member_scores = reference_scores(members, oracle_members)
    return auc_with_interval(member_scores, reference_scores(nonmembers, oracle_nonmembers))
