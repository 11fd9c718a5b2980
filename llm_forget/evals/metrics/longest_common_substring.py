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
    """Words in the longest contiguous run that generation and reference share; ``[N]``.

    With ``normalise``, divide by the words of the reference, which gives a share in [0, 1]. This is CoTaEval's
    word-level LCS, except that words are case-folded runs of letters and digits; CoTaEval splits at white space and
    deletes ASCII punctuation. A reference without words is unscored. ``over`` (``mean`` or ``max``) combines the
    samples of a row.
    """
    return common_words(generations, longest_run, normalise=normalise, over=over)
