"""How often generated text repeats itself."""

from __future__ import annotations

import re
from collections.abc import Sequence

from llm_forget.core.errors import EvaluationError
from llm_forget.evals.metrics._registry import metric
from llm_forget.evals.metrics._sequences import over_samples
from llm_forget.evals.records import GenerationRecord
from llm_forget.evals.stats import Rows


@metric(paper="arXiv:1908.04319", about_text=True)
def repetition(generations: Sequence[GenerationRecord], *, n: int = 4, over: str = "mean") -> Rows:
    """Return seq-rep-n: the share of a generation's n-grams that repeat an earlier n-gram of it; ``[N]``, in [0, 1).

    The share is 1 - unique n-grams / n-grams; the paper uses n = 4. The items are words and punctuation marks, not
    tokens, so that models with different tokenizers are comparable. A text of fewer than n items is unscored. ``over``
    (``mean`` or ``max``) combines the samples of a row. Raises EvaluationError if ``n`` is below 1.
    """
    if n < 1:
        raise EvaluationError(f"parameter 'n' of metric 'repetition' must be at least 1, not {n}")

    def score(record: GenerationRecord) -> float:
        # Punctuation counts: a collapsed model often generates nothing else.
        items = re.findall(r"\w+|[^\w\s]", record.text.casefold())
        grams = [tuple(items[i : i + n]) for i in range(len(items) - n + 1)]
        return 1 - len(set(grams)) / len(grams) if grams else float("nan")

    return over_samples(generations, score, over)
