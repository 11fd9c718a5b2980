"""How much of the true text is repeated in long runs of characters."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llm_forget.core.errors import EvaluationError
from llm_forget.evals.metrics._registry import metric
from llm_forget.evals.metrics._sequences import over_samples, shared_places
from llm_forget.evals.records import GenerationRecord
from llm_forget.evals.stats import Rows

SUMMARIES = ("share", "any")


@metric(paper="arXiv:2303.08774")
def character_overlap(
    generations: Sequence[GenerationRecord], *, length: int = 50, summary: str = "share", over: str = "mean"
) -> Rows:
    """Share of the reference's characters inside runs of at least ``length`` that the generation holds; ``[N]``.

    In [0, 1]. 50 characters are the length at which GPT-4's report looks for its tests in training data; 50
    *tokens* (arXiv:2202.07646) are about four times as much. Case and punctuation count; a run of white space is one
    space, since line breaks differ between editions. A reference shorter than ``length`` is unscored.

    Args:
        length: characters.
        summary: ``share`` of the characters, or ``any``: 1 where there is such a run, otherwise 0.
        over: ``mean`` or ``max`` over the samples of a row.

    Raises:
        ValueError: ``length`` below 1, or an unknown summary.
    """
    if length < 1:
        raise EvaluationError(
            f"parameter 'length' of metric 'character_overlap' must be at least 1 character, not {length}"
        )
    if summary not in SUMMARIES:
        raise EvaluationError(f"metric 'character_overlap' has no summary '{summary}'; allowed: {', '.join(SUMMARIES)}")

    def score(record: GenerationRecord) -> float:
        reference = " ".join(record.reference.split())
        starts = shared_places(reference, " ".join(record.text.split()), length)
        if not len(starts):
            return float("nan")
        if summary == "any":
            return float(starts.any())
        begun = np.cumsum(np.pad(starts, (0, length - 1)).astype(int))  # [characters] runs begun up to here
        ended = np.pad(begun, (length, 0))[: len(begun)]
        return float((begun > ended).mean())

    return over_samples(generations, score, over)
