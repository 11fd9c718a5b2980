"""The length of the longest passage of the reference text that the model repeats verbatim."""

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
    """Return the length of the longest contiguous run of words that generation and reference share; ``[N]``.

    With ``normalise``, divide by the number of words of the reference, which gives a share in [0, 1]. This is the
    word-level LCS of CoTaEval with other words: here a word is a run of letters and digits in lower case, while
    CoTaEval splits at white space and deletes ASCII punctuation. A reference without words is unscored. ``over``
    (``mean`` or ``max``) combines the samples of a row.
    """
    return common_words(generations, longest_run, normalise=normalise, over=over)
