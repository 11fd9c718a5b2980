"""Whether the model still prefers the true answer to false answers of the same form."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llm_forget.core.errors import EvaluationError
from llm_forget.core.registry import did_you_mean
from llm_forget.evals.metrics._registry import metric
from llm_forget.evals.records import TokenRecord, aligned
from llm_forget.evals.stats import Rows

SUMMARIES = ("ratio", "forget", "retain", "known")


@metric(paper="arXiv:2401.06121", chart="distribution")
def truth_ratio(correct: Sequence[TokenRecord], perturbed: Sequence[TokenRecord], *, summary: str = "ratio") -> Rows:
    """Return the truth ratio R = P(perturbed) / P(correct), or a function of R; ``[N]``.

    ``perturbed`` are false answers. ``correct`` is the paraphrased answer if there is one, otherwise the answer itself.
    P = exp(-mean token NLL). If there are several answers, P is the *geometric* mean, as in TOFU's code (its paper,
    section 3.1, has the arithmetic mean). R is below 1 if the model prefers the true answer.

    Args:
        summary: ``ratio`` is R, the input of `forget_quality`. ``forget`` is min(R, 1/R), which is 1 if true and false
            answers are equally likely. ``retain`` is max(0, 1 - R), which is 1 if the true answer is certain. ``known``
            is P(correct) / (P(correct) + P(perturbed)) (arXiv:2506.12618).
    """
    if summary not in SUMMARIES:
        raise EvaluationError(f"metric 'truth_ratio' has no summary '{summary}'; {did_you_mean(summary, SUMMARIES)}")
    gaps = [_mean_logp(wrong) - _mean_logp(right) for right, wrong in aligned(correct, perturbed)]
    log_ratio = np.array(gaps, dtype=np.float64)  # [N]
    if summary == "forget":
        return np.exp(-np.abs(log_ratio))
    if summary == "retain":
        return np.maximum(0.0, -np.expm1(log_ratio))
    if summary == "known":
        return 1 / (1 + np.exp(log_ratio))
    return np.exp(log_ratio)


def _mean_logp(answers: Sequence[TokenRecord]) -> float:
    """Return the mean token log-probability, averaged over the answers; NaN if an answer has no target tokens."""
    means = [record.logps.mean(dtype=np.float64) if record.n else np.nan for record in answers]
    return float(np.mean(means))
