"""The success of membership inference, relative to that on the oracle, a model that never saw the forget rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from llm_forget.data.subjects import subject_count
from llm_forget.evals import stats
from llm_forget.evals.membership import scores
from llm_forget.evals.metrics._registry import metric
from llm_forget.evals.records import TokenRecord, aligned, row_subjects
from llm_forget.evals.stats import Codes, Estimate, Rows, Subjects


@metric(paper="arXiv:2407.06460", two_sided=True)
def priv_leak(
    members: Sequence[TokenRecord],
    nonmembers: Sequence[TokenRecord],
    oracle_members: Sequence[TokenRecord],
    oracle_nonmembers: Sequence[TokenRecord],
    *,
    attack: str = "min_k",
    k: float = 0.4,
    include_last: bool = True,
) -> Estimate:
    """Return 100 ((1 - AUC) - (1 - AUC_oracle)) / (1 - AUC_oracle), with interval; in per cent, at least -100.

    Source: MUSE, section 3.2 (C4). The value is 0 for the oracle itself, below 0 if the rows are not forgotten, and
    above 0 if the model avoids the rows, which reveals them too. It is NaN if AUC_oracle is 1 (open-unlearning adds
    1e-10 to the denominator), and unscored without an oracle (open-unlearning assumes AUC_oracle = 0.5). ``rel_diff``
    of open-unlearning is another number: 100 (AUC - AUC_oracle) / AUC_oracle.

    The interval comes from a bootstrap that resamples the same subjects for both models. If almost all or almost no
    members score above the non-members, the interval is widened to include the score interval of this model's AUC.

    ``attack``, ``k`` and ``include_last`` are those of `membership_auc`. Raises EvaluationError if the two models were
    not measured on the same rows.
    """
    settings = {"k": k, "include_last": include_last}
    pairs = (members, oracle_members), (nonmembers, oracle_nonmembers)
    for pair in pairs:
        aligned(*pair)
    own, other = (np.stack([scores(rows, attack, **settings) for rows in pair]) for pair in pairs)
    return leak_with_interval(own, other, (row_subjects(members), row_subjects(nonmembers)))


def leak(value: Rows | float, oracle: Rows | float) -> Rows:
    """Apply the formula of `priv_leak` to AUCs of any shape. The result is NaN where the oracle's AUC is 1."""
    rest = 1 - np.asarray(oracle, dtype=np.float64)
    return 100 * ((1 - value) - rest) / np.where(rest > 0, rest, np.nan)


def leak_with_interval(members: Rows, nonmembers: Rows, subjects: Subjects | None = None) -> Estimate:
    """Return `priv_leak` with interval from scores ``[2, m]`` and ``[2, n]``; axis 0 is this model and the oracle."""
    unscored = sum(int(np.isnan(side).any(0).sum()) for side in (members, nonmembers))
    members_scored, nonmembers_scored = (side[:, ~np.isnan(side).any(0)] for side in (members, nonmembers))
    n = min(members_scored.shape[1], nonmembers_scored.shape[1])
    both = list(zip(members_scored, nonmembers_scored, strict=True))  # scores of this model and of the oracle
    value, oracle = (stats.auc(*samples) for samples in both)
    rows = {"members": members[0], "nonmembers": nonmembers[0]}
    estimate = Estimate(float(leak(value, oracle)), None, n, unscored, rows)
    if n < 2 or math.isnan(estimate.value):
        return estimate
    marked = [np.where(np.isnan(side).any(0), np.nan, 0.0) for side in (members, nonmembers)]  # NaN if unscored
    numbers = stats.both_numbers(marked[0], marked[1], subjects)
    ranks = [np.stack(sides) for sides in zip(*(stats.codes(*samples) for samples in both), strict=True)]
    ci = stats.bootstrap_of_subjects(_leaks, ranks, partial(_leaks, *ranks), numbers)
    sizes = [subject_count(side) for side in numbers]
    if stats.hardly_mixed(*both[0], *sizes):
        low, high = stats.auc_score_interval(value, *sizes)
        ci = stats.hull(ci, (float(leak(high, oracle)), float(leak(low, oracle))))
    # An end of the interval is NaN if the oracle's AUC is 1 in a resample.
    return replace(estimate, ci=None if math.isnan(ci[0]) or math.isnan(ci[1]) else ci)


def _leaks(members: Codes, nonmembers: Codes, *weights: Codes) -> Rows:
    """Return `priv_leak` of ``b`` resamples, ``[b]``, from ranks ``[2, b, m]`` of members and ``[2, b, n]`` of others.

    Axis 0 is this model and the oracle. With ``weights`` ``[b, m]`` and ``[b, n]`` (how often each row is drawn), the
    ranks are ``[2, m]`` and ``[2, n]``.
    """
    return leak(*(stats.auc_of_codes(*samples, *weights) for samples in zip(members, nonmembers, strict=True)))
