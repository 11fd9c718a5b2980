"""The share of the reference text that a model repeats in long runs of characters."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llm_forget.core.errors import EvaluationError
from llm_forget.evals.metrics._registry import metric
from llm_forget.evals.metrics._sequences import over_samples, window_matches
from llm_forget.evals.records import GenerationRecord
from llm_forget.evals.stats import Rows

SUMMARIES = ("share", "any")


@metric(paper="arXiv:2303.08774")
def character_overlap(
    generations: Sequence[GenerationRecord], *, length: int = 50, summary: str = "share", over: str = "mean"
) -> Rows:
    """Return the share of reference characters in runs that the generation also contains; ``[N]``, in [0, 1].

    A run has at least ``length`` characters; the GPT-4 report uses 50. With ``summary: any``, the value is 1 if there
    is such a run, otherwise 0. Case and punctuation count; white space is collapsed. A reference shorter than
    ``length`` is unscored. ``over`` (``mean`` or ``max``) combines the samples of a row. Raises EvaluationError if
    ``length`` is below 1 or the summary is unknown.
    """
    if length < 1:
        raise EvaluationError(f"'length' of metric 'character_overlap' must be at least 1 character, not {length}")
    if summary not in SUMMARIES:
        raise EvaluationError(f"metric 'character_overlap' has no summary '{summary}'; allowed: {', '.join(SUMMARIES)}")

    def score(record: GenerationRecord) -> float:
        reference = " ".join(record.reference.split())
        starts = window_matches(reference, " ".join(record.text.split()), length)
        if not len(starts):
            return float("nan")
        if summary == "any":
            return float(starts.any())
        begun = np.cumsum(np.pad(starts, (0, length - 1)).astype(int))  # [characters] number of runs that have begun
        ended = np.pad(begun, (length, 0))[: len(begun)]
        return float((begun > ended).mean())

    return over_samples(generations, score, over)
