"""The distributions that a model predicts at the target tokens of an answer, reduced to the most likely tokens."""

from __future__ import annotations

import base64
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Distributions:
    """Log-probs of the K most likely tokens at each of n targets, and of all other tokens together."""

    tokens: NDArray[np.int32]  # [n, K]
    logps: NDArray[np.float32]  # [n, K] nats
    rest: NDArray[np.float32]  # [n] nats; -inf if K is the size of the vocabulary

    def to_dict(self) -> dict[str, Any]:
        """Return the arrays for JSON, as Base64 of little-endian numbers. A token takes about eleven characters."""
        return {
            "k": self.tokens.shape[-1],
            "tokens": _encoded(self.tokens.astype("<i4")),
            "logps": _encoded(self.logps.astype("<f4")),
            "rest": _encoded(self.rest.astype("<f4")),
        }

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Distributions:
        """Make distributions from the output of `to_dict`."""
        tokens, logps, rest = (
            np.frombuffer(base64.b64decode(content[name]), dtype)
            for name, dtype in (("tokens", "<i4"), ("logps", "<f4"), ("rest", "<f4"))
        )
        shape = (len(rest), content["k"])
        return cls(tokens.reshape(shape), logps.reshape(shape), rest)


def kl_lower_bound(left: Distributions, right: Distributions) -> NDArray[np.float64]:
    """Return a lower bound of KL(left || right) at each target, ``[n]``, nats. It is exact if all tokens are stored.

    Tokens that both sides store are compared one by one. All other tokens are put into two groups: tokens that only
    ``left`` stores, and tokens that ``left`` does not store. Comparing groups instead of tokens never raises a
    divergence. The probability of the first group under ``right`` is not stored, but is at most ``right.rest``. The
    bound uses the probability within this limit that gives the lowest divergence.
    """
    rows = zip(left.tokens, left.logps, left.rest, right.tokens, right.logps, right.rest, strict=True)
    return np.array([_kl(*(np.asarray(part, np.float64) for part in row)) for row in rows])


def _kl(*arrays: NDArray[np.float64]) -> float:
    p_tokens, p, p_rest, q_tokens, q, q_rest = arrays
    _, in_p, in_q = np.intersect1d(p_tokens, q_tokens, assume_unique=True, return_indices=True)
    shared = sum(_term(a, b) for a, b in zip(p[in_p], q[in_q], strict=True))
    p_only, q_only = _log_sum(np.delete(p, in_p)), _log_sum(np.delete(q, in_q))
    outside_p, outside_q = np.logaddexp(p_only, p_rest), np.logaddexp(q_only, q_rest)
    # Equal ratios of the groups on both sides give the lowest divergence, but may need more than the rest of `right`.
    if p_only > -math.inf and p_only + outside_q - outside_p > q_rest:
        return shared + _term(p_only, float(q_rest)) + _term(float(p_rest), q_only)
    return shared + _term(float(outside_p), float(outside_q))


def _term(p: float, q: float) -> float:
    """Return p log(p / q), given the logarithms of p and q; 0 if p is 0."""
    return 0.0 if p == -math.inf else math.exp(p) * (p - q)


def _log_sum(values: NDArray[np.float64]) -> float:
    return float(np.logaddexp.reduce(values)) if len(values) else -math.inf


def _encoded(values: NDArray[Any]) -> str:
    return base64.b64encode(values.tobytes()).decode()
