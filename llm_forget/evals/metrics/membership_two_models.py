"""Membership inference with access to the target, the model before unlearning."""

from __future__ import annotations

from collections.abc import Sequence

from llm_forget.evals.membership import reference_scores
from llm_forget.evals.metrics._registry import metric
from llm_forget.evals.records import TokenRecord, row_subjects
from llm_forget.evals.stats import Estimate, auc_with_interval


@metric(paper="arXiv:1912.07942", two_sided=True, needs_target=True)
def membership_two_models(
    members: Sequence[TokenRecord],
    nonmembers: Sequence[TokenRecord],
    before_members: Sequence[TokenRecord],
    before_nonmembers: Sequence[TokenRecord],
) -> Estimate:
    """Return the AUC of an attack that also has the target, on members and non-members, with interval; in [0, 1].

    The score of a row is the drop of its mean token log-probability from the target to this model. Even a model that
    never saw the forget rows has a high AUC, because a user of both models can see what was deleted. The metric shows
    that the target must be withdrawn, not how well the model forgot.
    """
    samples = -reference_scores(members, before_members), -reference_scores(nonmembers, before_nonmembers)
    return auc_with_interval(*samples, (row_subjects(members), row_subjects(nonmembers)))
