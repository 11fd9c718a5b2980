"""Length of the longest passage that the model repeats verbatim."""

from __future__ import annotations

from collections.abc import Sequence

from llm_forget.evals.metrics._registry import metric
from llm_forget.evals.metrics._sequences import common_words, longest_run
from llm_forget.evals.records import GenerationRecord
from llm_forget.evals.stats import Rows


@metric(paper="arXiv:2406.18664")
def longest_common_substring(
    generations: Sequence[GenerationRecord], *, normalise: bool = False, over: str = "mean"
) -> Rows:
    """Words in the longest contiguous run that generation and reference share; ``[N]``, words or a share.

    This is CoTaEval's word-level LCS, which its code computes as a contiguous match (other papers call the subsequence
    LCS). Our words are case-folded runs of letters and digits: *mother-in-law* is three. CoTaEval splits at white space
    and deletes ASCII punctuation: it is one. A reference without words is unscored; an empty generation scores 0.

    Args:
        normalise: divide by the number of words of the reference, which gives a share in [0, 1].
        over: ``mean`` or ``max`` over the samples of a row.
    """
    return common_words(generations, longest_run, normalise=normalise, over=over)
