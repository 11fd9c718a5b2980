"""Whether forgotten rows can be told from rows never seen by somebody who kept the model before."""

from __future__ import annotations

from collections.abc import Sequence

from llm_forget.evals.membership import reference_scores
from llm_forget.evals.metrics._registry import metric
from llm_forget.evals.records import TokenRecord
from llm_forget.evals.stats import Estimate, auc_with_interval, with_rows


@metric(paper="arXiv:1912.07942")
def membership_two_models(
    members: Sequence[TokenRecord],
    nonmembers: Sequence[TokenRecord],
    before_members: Sequence[TokenRecord],
    before_nonmembers: Sequence[TokenRecord],
) -> Estimate:
    """AUC of the fall in mean token log-probability from the model before to this one, with interval; in [0, 1].

    0.5 for the model before itself. It is high even for the oracle, since every deletion shows where both models can be
    asked: it says that the old model must be taken back, not how well was forgotten.
    """
    member_scores, nonmember_scores = (
        -reference_scores(members, before_members),
        -reference_scores(nonmembers, before_nonmembers),
    )
    return with_rows(
        auc_with_interval(member_scores, nonmember_scores), members=member_scores, nonmembers=nonmember_scores
    )
