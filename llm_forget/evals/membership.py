"""Membership inference attacks: each function scores how likely it is that the model was trained on an answer.

A higher score means that training on the answer is more likely. The score of an answer without target tokens is NaN.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llm_forget.core.errors import EvaluationError
from llm_forget.core.registry import Entry, Registry
from llm_forget.evals.records import GradientRecord, TokenRecord, aligned, row_means
from llm_forget.evals.stats import Rows

ATTACKS = Registry("attack", Entry)
attack = ATTACKS.register

# As in open-unlearning: if the model is certain of a token, its variance is almost 0 and would dominate the score.
SMALLEST_VARIANCE = 1e-6


@attack(paper="arXiv:1709.01604")
def loss(record: TokenRecord) -> float:
    """Return the mean log-probability of the answer's tokens; nats, at most 0."""
    return float(record.logps.mean(dtype=np.float64)) if record.n else math.nan


@attack(paper="arXiv:2012.07805")
def zlib(record: TokenRecord) -> float:
    """Return `loss` divided by the size of the zlib-compressed answer; nats per byte, at most 0 (section 5.2).

    The division corrects for text that compresses well: such text is likely even for a model that was not trained on
    it. The size is that of the UTF-8 text without special tokens, compressed at the default level, with the header. As
    in open-unlearning and MIMIR, `loss` is a mean over tokens, not a sum. Raises EvaluationError if the record has no
    ``zlib_bytes``.
    """
    if record.zlib_bytes < 1:
        raise EvaluationError(
            f"attack 'zlib' needs the compressed size of each answer, which row '{record.id}' lacks; fill in zlib_bytes"
            " from the data before the attack"
        )
    return loss(record) / record.zlib_bytes


@attack(paper="arXiv:2310.16789")
def min_k(record: TokenRecord, *, k: float = 0.4, include_last: bool = True) -> float:
    """Return the mean log-probability of the least likely tokens of the answer; nats, at most 0 (section 3).

    ``k`` in (0, 1] is the share of tokens to use: 0.4 for MUSE and TOFU, 0.2 in the paper. At least one token is used.
    If ``include_last`` is false, the last labelled token (end of the answer) is excluded, as in open-unlearning.
    """
    return _lowest(record.logps, k, include_last)


@attack(paper="arXiv:2404.02936")
def min_k_plus_plus(record: TokenRecord, *, k: float = 0.4, include_last: bool = True) -> float:
    """Return `min_k` of normalised log-probabilities, (log p(token) - mu) / sigma; no unit.

    mu and sigma are the mean and standard deviation of log p(v) over tokens v drawn from the predicted distribution p;
    sigma^2 is at least 1e-6. A token scores 0 if its probability is 1, and also if all tokens are equally likely.
    Raises EvaluationError if the record lacks the mean or variance of a token.
    """
    if not record.n == len(record.means) == len(record.variances):
        raise EvaluationError(
            f"attack 'min_k_plus_plus' needs mean and variance of every token, which row '{record.id}' lacks; measure "
            "the row again with a probe of kind logprobs"
        )
    sigma = np.sqrt(np.maximum(record.variances.astype(np.float64), SMALLEST_VARIANCE))  # [n]
    return _lowest((record.logps.astype(np.float64) - record.means) / sigma, k, include_last)


@attack(paper="arXiv:2012.07805", needs={"oracle"})
def reference(record: TokenRecord, oracle_record: TokenRecord) -> float:
    """Return `loss` of the model minus `loss` of the oracle, which never saw the answer; nats (section 5.2)."""
    return loss(record) - loss(oracle_record)


@attack(paper="arXiv:2402.17012", needs={"gradients"})
def gradnorm(record: GradientRecord, *, p: float = 2.0) -> float:
    """Return the negative p-norm of the gradient, at most 0; raise EvaluationError if ``p`` is not 1, 2 or inf."""
    name = f"{float(p):g}"
    if name not in record.norms:
        raise EvaluationError(f"attack 'gradnorm' has no norm p = {name}; allowed: {', '.join(record.norms)}")
    return -record.norms[name]


def scores(records: Sequence[TokenRecord], name: str, **parameters: Any) -> Rows:
    """Score each row with the attack ``name``, averaged over the answers of the row: ``[N]``, NaN = unscored.

    Parameters that the attack does not have are ignored. Raises ConfigError if there is no such attack, and
    EvaluationError if the attack needs more than log-probabilities.
    """
    entry = ATTACKS.get(name)
    if entry.needs:
        needed = " and ".join(sorted(entry.needs))
        raise EvaluationError(f"attack '{name}' needs {needed} beside log-probs; use metric 'membership_{name}'")
    return row_means(records, entry.bind(**{key: v for key, v in parameters.items() if key in entry.defaults}))


def reference_scores(records: Sequence[TokenRecord], oracle_records: Sequence[TokenRecord]) -> Rows:
    """Return the `reference` score of each row: ``[N]``, NaN = unscored. Raise EvaluationError for different rows."""
    oracle = {record.key: record for _, right in aligned(records, oracle_records) for record in right}
    return row_means(records, lambda record: reference(record, oracle[record.key]))


def _lowest(values: NDArray[Any], k: float, include_last: bool) -> float:
    """Average the max(1, int(k n)) lowest of n values; NaN if n is 0. Raise EvaluationError unless 0 < k <= 1."""
    if not 0 < k <= 1:
        raise EvaluationError(f"k is the share of tokens that min-k averages: above 0 and at most 1, not {k:g}")
    values = values if include_last else values[:-1]
    count = max(1, int(k * len(values)))
    return float(np.sort(values)[:count].mean(dtype=np.float64)) if len(values) else math.nan
