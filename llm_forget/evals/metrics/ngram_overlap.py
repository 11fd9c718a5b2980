"""How much of the true text is repeated in pieces of n words."""

from __future__ import annotations

from collections.abc import Sequence

from llm_forget.core.errors import EvaluationError
from llm_forget.evals.metrics._registry import metric
from llm_forget.evals.metrics._sequences import over_samples, shared_places, words
from llm_forget.evals.records import GenerationRecord
from llm_forget.evals.stats import Rows


@metric(paper="arXiv:2005.14165")
def ngram_overlap(generations: Sequence[GenerationRecord], *, n: int = 13, over: str = "mean") -> Rows:
    """Share of the reference's n-grams of words that occur anywhere in the generation; ``[N]`` in [0, 1].

    13 words are what GPT-3 (appendix C) takes for a collision of two texts. Every place of the reference counts, also
    where it repeats itself. 1 is the whole reference, 0 no run of ``n`` words; a reference of fewer words is unscored.

    Args:
        n: words.
        over: ``mean`` or ``max`` over the samples of a row.

    Raises:
        ValueError: ``n`` below 1.
    """
    if n < 1:
        raise EvaluationError(f"parameter 'n' of metric 'ngram_overlap' must be at least 1 word, not {n}")

    def score(record: GenerationRecord) -> float:
        places = shared_places(words(record.reference), words(record.text), n)
        return float(places.mean()) if len(places) else float("nan")

    return over_samples(generations, score, over)
