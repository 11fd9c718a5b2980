"""Number of words of the true text that the model generates in the same order."""

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
    """Words in the longest common subsequence (gaps allowed) of generation and reference; ``[N]``, words or a share.

    Normalised, it is ROUGE-L recall without stemming. It reads words of any script and is fast for long texts. Frequent
    words alone make it large, so compare it with the oracle's value. It is at least `longest_common_substring`. A
    reference without words is unscored; an empty generation scores 0.

    Args:
        normalise: divide by the number of words of the reference, which gives a share in [0, 1].
        over: ``mean`` or ``max`` over the samples of a row.
    """
    return common_words(generations, longest_subsequence, normalise=normalise, over=over)
