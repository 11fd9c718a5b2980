"""The number of words of the reference text that the model generates in the same order."""

from __future__ import annotations

from collections.abc import Sequence

from llm_forget.evals.metrics._registry import metric
from llm_forget.evals.metrics._sequences import common_words, longest_subsequence
from llm_forget.evals.records import GenerationRecord
from llm_forget.evals.stats import Rows


@metric(paper="arXiv:2310.13771")
def longest_common_subsequence(
    generations: Sequence[GenerationRecord], *, normalise: bool = False, over: str = "mean"
) -> Rows:
    """Return the length in words of the longest common subsequence (gaps allowed) with the reference; ``[N]``.

    With ``normalise``, divide by the number of words of the reference: this is ROUGE-L recall without stemming, in
    [0, 1]. Frequent words alone give a large value, so compare it with that of a model that never saw the rows. A
    reference without words is unscored. ``over`` (``mean`` or ``max``) combines the samples of a row.
    """
    return common_words(generations, longest_subsequence, normalise=normalise, over=over)
