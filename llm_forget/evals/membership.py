"""Membership inference: how much an answer looks as if the model had been trained on it, one small function per attack.

A score is higher the more an answer looks like a *member*, so the AUC of forget rows against holdout rows is 1 when the
forget rows are much likelier. Peers negate: their score is high for non-members, which gives the same AUC. An answer
without target tokens has the score NaN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llm_forget.core.errors import EvaluationError
from llm_forget.core.registry import Registry
from llm_forget.evals.records import GradientRecord, TokenRecord, aligned, row_means
from llm_forget.evals.stats import Rows

ATTACKS = Registry("attack")
attack = ATTACKS.register

# open-unlearning's floor: where the model is certain, a variance of 1e-9 would decide over the whole score.
SMALLEST_VARIANCE = 1e-6


@attack(paper="arXiv:1709.01604")
def loss(record: TokenRecord) -> float:
    """Mean log-probability of the answer's tokens; nats, at most 0."""
    return float(record.logps.mean(dtype=np.float64)) if record.n else math.nan


@attack(paper="arXiv:2012.07805")
def zlib(record: TokenRecord) -> float:
    """`loss` divided by the size of the answer's text after zlib; nats per byte, at most 0 (section 5.2).

    Text that is easy to compress is likely without having been seen. The text is the answer as labelled, without
    special tokens, in UTF-8; the size is ``len(zlib.compress(text))`` at the default level, its header included. The
    log-probability is the mean over all target tokens and not their sum, as in open-unlearning and MIMIR.

    Raises:
        ValueError: the record's ``zlib_bytes`` were not filled in.
    """
    if record.zlib_bytes < 1:
        raise EvaluationError(
            f"attack 'zlib' needs the compressed size of each answer, which row '{record.id}' lacks; fill in zlib_bytes"
            " from the data before the attack"
        )
    return loss(record) / record.zlib_bytes


@attack(paper="arXiv:2310.16789")
def min_k(record: TokenRecord, *, k: float = 0.4, include_last: bool = True) -> float:
    """Mean of the lowest share ``k`` of the token log-probabilities, at least one of them; nats, at most 0.

    Section 3; with k = 1 it is `loss`.

    Args:
        record: one answer.
        k: share of the tokens, in (0, 1]; 0.4 in runs on MUSE and TOFU, 0.2 in the paper.
        include_last: count the end of the answer too; open-unlearning leaves the last labelled token out.
    """
    return _lowest(record.logps, k, include_last)


@attack(paper="arXiv:2404.02936")
def min_k_plus_plus(record: TokenRecord, *, k: float = 0.4, include_last: bool = True) -> float:
    """`min_k` of (log p(token) - mu) / sigma, with mean and deviation of log p(v) over v drawn from p; no unit.

    A token at the mode of a flat distribution has 0 and so has one the model is certain of; the
    variance is at least 1e-6.

    Raises:
        ValueError: the record has no means and variances.
    """
    if not record.n == len(record.means) == len(record.variances):
        raise EvaluationError(
            f"attack 'min_k_plus_plus' needs mean and variance of every token, which row '{record.id}' lacks; measure "
            "it again with a probe of kind logprobs"
        )
    sigma = np.sqrt(np.maximum(record.variances.astype(np.float64), SMALLEST_VARIANCE))  # [n]
    return _lowest((record.logps.astype(np.float64) - record.means) / sigma, k, include_last)


@attack(paper="arXiv:2012.07805", needs={"oracle"})
def reference(record: TokenRecord, oracle_record: TokenRecord) -> float:
    """`loss` minus the `loss` of a model that never saw the answer; nats, 0 for that model itself (section 5.2)."""
    return loss(record) - loss(oracle_record)


@attack(paper="arXiv:2402.17012", needs={"gradients"})
def gradnorm(record: GradientRecord, *, p: float = 2.0) -> float:
    """Minus the p-norm of the gradient; at most 0, which a perfectly learnt answer has.

    Raises:
        ValueError: ``p`` is not 1, 2 or inf.
    """
    name = f"{float(p):g}"
    if name not in record.norms:
        raise EvaluationError(f"attack 'gradnorm' has no norm p = {name}; allowed: {', '.join(record.norms)}")
    return -record.norms[name]


def scores(records: Sequence[TokenRecord], name: str, **parameters: Any) -> Rows:
    """Score of each row under an attack on one record, averaged over the row's answers: ``[N]``, NaN = unscored.

    Args:
        records: of one split.
        name: of the attack.
        parameters: its hyper-parameters; those that it does not have are left out.

    Raises:
        ValueError: no such attack, or one that needs more than log-probabilities.
    """
    entry = ATTACKS.get(name)
    if entry.needs:
        needed = " and ".join(sorted(entry.needs))
        raise EvaluationError(
            f"attack '{name}' needs {needed} beside log-probabilities; take metric 'membership_{name}'"
        )
    return row_means(records, entry.bind(**{key: v for key, v in parameters.items() if key in entry.defaults}))


def reference_scores(records: Sequence[TokenRecord], oracle_records: Sequence[TokenRecord]) -> Rows:
    """`reference` of each row, averaged over its answers: ``[N]``, NaN = unscored.

    Raises:
        ValueError: the two models were not measured on the same rows.
    """
    oracle = {record.key: record for _, right in aligned(records, oracle_records) for record in right}
    return row_means(records, lambda record: reference(record, oracle[record.key]))


def _lowest(values: NDArray[Any], k: float, include_last: bool) -> float:
    """Mean of the lowest max(1, int(k n)) values; NaN when there is none."""
    if not 0 < k <= 1:
        raise EvaluationError(f"k is the share of tokens that min-k looks at, above 0 and at most 1, not {k:g}")
    values = values if include_last else values[:-1]
    count = max(1, int(k * len(values)))
    return float(np.sort(values)[:count].mean(dtype=np.float64)) if len(values) else math.nan
