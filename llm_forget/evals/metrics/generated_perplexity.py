"""How strange another model finds what this one says."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llm_forget.evals.metrics._registry import metric
from llm_forget.evals.records import TokenRecord, by_row
from llm_forget.evals.stats import Rows


@metric(paper="arXiv:1904.09751")
def generated_perplexity(judged: Sequence[TokenRecord]) -> Rows:
    """Perplexity of the generated text under the judging model, exp(mean token NLL); ``[N]``, at least 1.

    Over all tokens of all samples of a row. High is gibberish; *low* is not good by itself, since a text that repeats
    one phrase has a low perplexity: read it beside `repetition` and beside the model before. V (the vocabulary) is what
    a uniform judge gives. A row whose texts are all empty is unscored.

    Args:
        judged: the generated texts, teacher-forced under another model (probe ``judge``).
    """

    def perplexity(samples: Sequence[TokenRecord]) -> float:
        logps = np.concatenate([record.logps for record in samples])
        return float(np.exp(-logps.mean(dtype=np.float64))) if len(logps) else float("nan")

    return np.array([perplexity(samples) for samples in by_row(judged).values()])
