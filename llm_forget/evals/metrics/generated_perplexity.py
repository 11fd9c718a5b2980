"""The perplexity of generated text under a judging model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llm_forget.evals.metrics._registry import metric
from llm_forget.evals.records import TokenRecord, by_row
from llm_forget.evals.stats import Rows


@metric(paper="arXiv:1904.09751", about_text=True)
def generated_perplexity(judged: Sequence[TokenRecord]) -> Rows:
    """Return the perplexity of the generated text of each row, exp(mean token NLL); ``[N]``, at least 1.

    The judging model (probe ``judge``) gives the NLL, and the mean is over all tokens of all samples of a row. A high
    value means gibberish. A repeated phrase has a low value, so read the value together with `repetition`, and compare
    with the model before unlearning. A row is unscored if all its texts are empty.
    """

    def perplexity(samples: Sequence[TokenRecord]) -> float:
        logps = np.concatenate([record.logps for record in samples])
        return float(np.exp(-logps.mean(dtype=np.float64))) if len(logps) else float("nan")

    return np.array([perplexity(samples) for samples in by_row(judged).values()])
