"""Success of membership inference relative to a model that never saw the rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from llm_forget.evals import stats
from llm_forget.evals.membership import scores
from llm_forget.evals.metrics._registry import metric
from llm_forget.evals.records import TokenRecord, aligned
from llm_forget.evals.stats import Codes, Estimate, Rows


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
    pairs = (members, oracle_members), (nonmembers, oracle_nonmembers)
    for pair in pairs:
        aligned(*pair)
    return leak_with_interval(*(np.stack([scores(rows, attack, **settings) for rows in pair]) for pair in pairs))


def leak(value: Rows | float, oracle: Rows | float) -> Rows:
    """The formula of `priv_leak` for AUCs of any shape; NaN where that of the oracle is 1."""
    rest = 1 - np.asarray(oracle, dtype=np.float64)
    return 100 * ((1 - value) - rest) / np.where(rest > 0, rest, np.nan)


def leak_with_interval(members: Rows, nonmembers: Rows) -> Estimate:
    """`priv_leak` of scores ``[2, m]`` and ``[2, n]``, whose second row is the oracle's."""
    unscored = sum(int(np.isnan(side).any(0).sum()) for side in (members, nonmembers))
    members_scored, nonmembers_scored = (side[:, ~np.isnan(side).any(0)] for side in (members, nonmembers))
    n = min(members_scored.shape[1], nonmembers_scored.shape[1])
    both = list(zip(members_scored, nonmembers_scored, strict=True))  # scores of this model and of the oracle
    value, oracle = (stats.auc(*samples) for samples in both)
    rows = {"members": members[0], "nonmembers": nonmembers[0]}
    estimate = Estimate(float(leak(value, oracle)), None, n, unscored, rows)
    if n < 2 or math.isnan(estimate.value):
        return estimate
    ranks = zip(*(stats.codes(*samples) for samples in both), strict=True)
    ci = stats.bootstrap(_leaks, *map(np.stack, ranks))
    if stats.hardly_mixed(*both[0]):
        low, high = stats.auc_score_interval(value, members_scored.shape[1], nonmembers_scored.shape[1])
        ci = stats.hull(ci, (float(leak(high, oracle)), float(leak(low, oracle))))
    # An end is NaN if a resample has an oracle AUC of 1.
    return replace(estimate, ci=None if math.isnan(ci[0]) or math.isnan(ci[1]) else ci)


def _leaks(members: Codes, nonmembers: Codes) -> Rows:
    """`priv_leak` of resampled codes ``[2, b, m]`` and ``[2, b, n]``, whose first axis is model and oracle: ``[b]``."""
    return leak(stats.auc_of_codes(members[0], nonmembers[0]), stats.auc_of_codes(members[1], nonmembers[1]))
