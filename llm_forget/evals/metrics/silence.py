"""Whether the model says anything at all: one that is silent leaves repetition and perplexity unscored."""

from __future__ import annotations

from collections.abc import Sequence

from llm_forget.evals.metrics._registry import metric
from llm_forget.evals.metrics._sequences import over_samples
from llm_forget.evals.records import GenerationRecord
from llm_forget.evals.stats import Rows


@metric(paper="arXiv:2506.12618")
def silence(generations: Sequence[GenerationRecord]) -> Rows:
    """Share of a row's samples without a letter or digit; ``[N]`` in [0, 1].

    0 while every sample says something, 1 for a model that ends at once or prints marks; one that gave no
    probabilities is unscored. The paper asks a classifier
    for gibberish; this is the part of it that needs none.
    """
    return over_samples(generations, lambda record: float(not any(c.isalnum() for c in record.text)))
