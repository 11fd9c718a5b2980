"""Whether rows that were to be forgotten can be told from rows never seen."""

from __future__ import annotations

from collections.abc import Sequence

from llm_forget.evals.membership import scores
from llm_forget.evals.metrics._registry import metric
from llm_forget.evals.records import TokenRecord
from llm_forget.evals.stats import Estimate, auc_with_interval, with_rows


@metric(paper="arXiv:2407.06460")
def membership_auc(
    members: Sequence[TokenRecord],
    nonmembers: Sequence[TokenRecord],
    *,
    attack: str = "min_k",
    k: float = 0.4,
    include_last: bool = True,
) -> Estimate:
    """AUC of a membership attack, members against non-members of the same distribution, with interval; in [0, 1].

    0.5 when they cannot be told apart, 1 when members are much likelier, 0 when they are much less likely, which gives
    them away as well. Equal to open-unlearning's AUC, whose scores are ours negated.

    Args:
        members: rows to be forgotten.
        nonmembers: rows of the same distribution that were never trained on.
        attack: `llm_forget.evals.membership`: loss, zlib, min_k, min_k_plus_plus, or ``module:function``.
        k: share of tokens of min_k and min_k_plus_plus; other attacks have none.
        include_last: whether these two count the end of the answer; open-unlearning does not.
    """
    settings = {"k": k, "include_last": include_last}
    member_scores, nonmember_scores = scores(members, attack, **settings), scores(nonmembers, attack, **settings)
    return with_rows(
        auc_with_interval(member_scores, nonmember_scores), members=member_scores, nonmembers=nonmember_scores
    )
