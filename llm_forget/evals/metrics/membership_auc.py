"""Membership inference: AUC of forget rows against rows that were never trained on."""

from __future__ import annotations

from collections.abc import Sequence

from llm_forget.evals.membership import scores
from llm_forget.evals.metrics._registry import metric
from llm_forget.evals.records import TokenRecord
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
    """AUC of a membership attack, members against non-members of the same distribution, with interval; in [0, 1].

    0.5 if they are indistinguishable, 1 if members are much likelier, 0 if they are much less likely, which reveals
    them as well. Equal to the AUC of open-unlearning, whose scores are ours negated.

    Args:
        attack: `llm_forget.evals.membership`: loss, zlib, min_k, min_k_plus_plus, or ``module:function``.
        k: share of tokens of min_k and min_k_plus_plus; other attacks ignore it.
        include_last: whether these two include the end of the answer; open-unlearning excludes it.
    """
    settings = {"k": k, "include_last": include_last}
    return auc_with_interval(scores(members, attack, **settings), scores(nonmembers, attack, **settings))
