"""Membership inference with access to the oracle, a model that never saw the forget rows."""

from __future__ import annotations

from collections.abc import Sequence

from llm_forget.evals.membership import reference_scores
from llm_forget.evals.metrics._registry import metric
from llm_forget.evals.records import TokenRecord, row_subjects
from llm_forget.evals.stats import Estimate, auc_with_interval


@metric(paper="arXiv:2012.07805", two_sided=True)
def membership_reference(
    members: Sequence[TokenRecord],
    nonmembers: Sequence[TokenRecord],
    oracle_members: Sequence[TokenRecord],
    oracle_nonmembers: Sequence[TokenRecord],
) -> Estimate:
    """Return the AUC of the attack ``reference`` on members and non-members, with interval; in [0, 1].

    The score of a row is its mean token log-probability minus that of the oracle. For the oracle itself all scores are
    0, and the AUC is 0.5.
    """
    samples = reference_scores(members, oracle_members), reference_scores(nonmembers, oracle_nonmembers)
    return auc_with_interval(*samples, (row_subjects(members), row_subjects(nonmembers)))
