"""Success of membership inference relative to a model that never saw the rows."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from llm_forget.evals.membership import scores
from llm_forget.evals.metrics._registry import metric
from llm_forget.evals.records import TokenRecord, aligned
from llm_forget.evals.stats import (
    Codes,
    Estimate,
    Interval,
    Rows,
    auc,
    auc_of_codes,
    auc_score_interval,
    bootstrap,
    codes,
    hardly_mixed,
    hull,
    with_rows,
)


@metric(paper="arXiv:2407.06460")
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
    """100 ((1 - AUC) - (1 - AUC_oracle)) / (1 - AUC_oracle) with its interval; in per cent, at least -100.

    MUSE, section 3.2 (C4). 0 for the oracle itself; below 0 the rows are not forgotten, -100 if they are all
    recognised; above 0 the model avoids them, which reveals them as well. NaN if AUC_oracle is 1: the rows differ even
    for a model that saw neither, so there is no reference (open-unlearning adds 1e-10 to the denominator). Without an
    oracle, open-unlearning assumes 0.5 for its AUC; here it is unscored. Its `rel_diff`, 100 (AUC - AUC_oracle) /
    AUC_oracle, is another number with the opposite sign: this formula with 1 - AUC in place of each AUC.

    The interval comes from a bootstrap that resamples rows jointly for both models. If nearly all members or none are
    above the non-members, that interval is too narrow, and it is widened to the score interval of this model's AUC.

    Args:
        members, nonmembers: records of this model.
        oracle_members, oracle_nonmembers: records of the oracle on the same rows.
        attack, k, include_last: as in `membership_auc`.

    Raises:
        EvaluationError: the two models were not measured on the same rows.
    """
    settings = {"k": k, "include_last": include_last}
    for records, oracle_records in ((members, oracle_members), (nonmembers, oracle_nonmembers)):
        aligned(records, oracle_records)
    member_scores, nonmember_scores = scores(members, attack, **settings), scores(nonmembers, attack, **settings)
    oracle_scores = scores(oracle_members, attack, **settings), scores(oracle_nonmembers, attack, **settings)
    estimate = leak_with_interval(
        np.stack([member_scores, oracle_scores[0]]), np.stack([nonmember_scores, oracle_scores[1]])
    )
    return with_rows(estimate, members=member_scores, nonmembers=nonmember_scores)


def leak(value: Rows | float, oracle: Rows | float) -> Rows:
    """The formula of `priv_leak` for AUCs of any shape; NaN where that of the oracle is 1."""
    rest = 1 - np.asarray(oracle, dtype=np.float64)
    return 100 * ((1 - value) - rest) / np.where(rest > 0, rest, np.nan)


def leak_with_interval(members: Rows, nonmembers: Rows) -> Estimate:
    """`priv_leak` of scores ``[2, m]`` and ``[2, n]``, whose second row is the oracle's."""
    unscored = sum(int(np.isnan(side).any(0).sum()) for side in (members, nonmembers))
    members_scored, nonmembers_scored = (side[:, ~np.isnan(side).any(0)] for side in (members, nonmembers))
    n = min(members_scored.shape[1], nonmembers_scored.shape[1])
    value, oracle = auc(members_scored[0], nonmembers_scored[0]), auc(members_scored[1], nonmembers_scored[1])
    estimate = Estimate(float(leak(value, oracle)), None, n, unscored)
    if n < 2 or math.isnan(estimate.value):
        return estimate
    ranks, oracle_ranks = codes(members_scored[0], nonmembers_scored[0]), codes(members_scored[1], nonmembers_scored[1])
    ci = bootstrap(_leaks, np.stack([ranks[0], oracle_ranks[0]]), np.stack([ranks[1], oracle_ranks[1]]))
    if hardly_mixed(members_scored[0], nonmembers_scored[0]):
        low, high = auc_score_interval(value, members_scored.shape[1], nonmembers_scored.shape[1])
        ci = hull(ci, (float(leak(high, oracle)), float(leak(low, oracle))))
    return Estimate(estimate.value, _finite_interval(ci), n, unscored)


def _leaks(members: Codes, nonmembers: Codes) -> Rows:
    """`priv_leak` of resampled codes ``[2, b, m]`` and ``[2, b, n]``, whose first axis is model and oracle: ``[b]``."""
    return leak(auc_of_codes(members[0], nonmembers[0]), auc_of_codes(members[1], nonmembers[1]))


def _finite_interval(ci: Interval) -> Interval | None:
    """The interval, or None if an end is NaN because a resample has an oracle AUC of 1."""
    return None if math.isnan(ci[0]) or math.isnan(ci[1]) else ci
