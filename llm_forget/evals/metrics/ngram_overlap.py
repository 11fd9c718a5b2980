"""The share of word n-grams of the reference text that the model repeats."""

from __future__ import annotations

from collections.abc import Sequence

from llm_forget.core.errors import EvaluationError
from llm_forget.evals.metrics._registry import metric
from llm_forget.evals.metrics._sequences import over_samples, window_matches, words
from llm_forget.evals.records import GenerationRecord
from llm_forget.evals.stats import Rows


@metric(paper="arXiv:2005.14165")
def ngram_overlap(generations: Sequence[GenerationRecord], *, n: int = 13, over: str = "mean") -> Rows:
    """Return the share of the reference's word n-grams that occur anywhere in the generation; ``[N]``, in [0, 1].

    GPT-3 (appendix C) uses n = 13. An n-gram that the reference repeats counts each time. A reference with less than
    ``n`` words is unscored. ``over`` (``mean`` or ``max``) combines the samples of a row. Raises EvaluationError if
    ``n`` is below 1.
    """
    if n < 1:
        raise EvaluationError(f"parameter 'n' of metric 'ngram_overlap' must be at least 1 word, not {n}")

    def score(record: GenerationRecord) -> float:
        matches = window_matches(words(record.reference), words(record.text), n)
        return float(matches.mean()) if len(matches) else float("nan")

    return over_samples(generations, score, over)
