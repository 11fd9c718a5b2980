"""The share of empty answers, which the metrics of repetition and perplexity cannot score."""

from __future__ import annotations

from collections.abc import Sequence

from llm_forget.evals.metrics._registry import metric
from llm_forget.evals.metrics._sequences import over_samples
from llm_forget.evals.records import GenerationRecord
from llm_forget.evals.stats import Rows


@metric(paper="arXiv:2506.12618", about_text=True)
def silence(generations: Sequence[GenerationRecord]) -> Rows:
    """Return the share of a row's samples that contain no letter and no digit; ``[N]``, in [0, 1].

    A sample with NaN or infinite logits is unscored. The paper uses a gibberish classifier instead.
    """
    return over_samples(generations, lambda record: float(not any(c.isalnum() for c in record.text)))
