"""How many rows a membership attack is sure of."""

from __future__ import annotations

from collections.abc import Sequence

from llm_forget.evals.membership import scores
from llm_forget.evals.metrics._registry import metric
from llm_forget.evals.records import TokenRecord
from llm_forget.evals.stats import Estimate, tpr_with_interval, with_rows


@metric(paper="arXiv:2112.03570")
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

    About ``at_fpr`` when members and non-members cannot be told apart, 1 when they are separated. An attack may be sure
    of a few rows and no better than chance on average, which the AUC does not show. At 1 % it takes at least 100
    non-members to allow one false positive; with fewer it allows none.

    Args:
        members: rows to be forgotten.
        nonmembers: rows of the same distribution that were never trained on.
        attack: as in `membership_auc`, and so are ``k`` and ``include_last``.
        k: share of tokens of min_k and min_k_plus_plus.
        include_last: whether these two count the end of the answer.
        at_fpr: in [0, 1).
    """
    settings = {"k": k, "include_last": include_last}
    member_scores, nonmember_scores = scores(members, attack, **settings), scores(nonmembers, attack, **settings)
    return with_rows(
        tpr_with_interval(member_scores, nonmember_scores, at_fpr), members=member_scores, nonmembers=nonmember_scores
    )
