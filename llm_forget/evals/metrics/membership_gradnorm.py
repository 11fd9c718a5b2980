"""Membership inference by gradient norms."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from llm_forget.evals.membership import gradnorm
from llm_forget.evals.metrics._registry import metric
from llm_forget.evals.records import GradientRecord, row_means, row_subjects
from llm_forget.evals.stats import Estimate, auc_with_interval


@metric(paper="arXiv:2402.17012", two_sided=True)
def membership_gradnorm(
    members: Sequence[GradientRecord], nonmembers: Sequence[GradientRecord], *, p: float = 2.0
) -> Estimate:
    """Return the AUC of the negative gradient p-norm (p: 1, 2 or inf), members against non-members, with interval."""
    score = partial(gradnorm, p=p)
    samples = row_means(members, score), row_means(nonmembers, score)
    return auc_with_interval(*samples, (row_subjects(members), row_subjects(nonmembers)))
