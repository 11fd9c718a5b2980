"""Whether generated answers read like normal text, measured without a classifier."""

from __future__ import annotations

import numpy as np

from llm_forget.evals.metrics._registry import metric
from llm_forget.evals.stats import Rows, mean, scored


@metric(paper="arXiv:2506.12618", one_choice=True)
def fluency(perplexity: Rows, repetition: Rows, before_perplexity: Rows) -> float:
    """Return (1 - mean repetition) * min(1, perplexity of the target / perplexity of the model); in [0, 1].

    Perplexities are geometric means over rows. The target is the model before unlearning. One choice of several ways to
    detect collapse; open-unlearning (appendix F.1) uses a gibberish classifier. Random text has a high perplexity under
    the target, and a repeated phrase has a high repetition. The value is unscored if repetition or a perplexity is
    unscored, as for a model with empty answers.
    """
    ratio = np.exp(_mean_log(before_perplexity) - _mean_log(perplexity))
    return float((1 - mean(repetition)) * np.minimum(1.0, ratio))  # np.minimum, unlike min, keeps NaN


def _mean_log(perplexities: Rows) -> float:
    return mean(np.log(scored(perplexities)))
