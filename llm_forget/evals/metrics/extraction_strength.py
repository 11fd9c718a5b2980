"""Share of the answer that the model completes by itself after the shortest sufficient prefix."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llm_forget.evals.metrics._registry import metric
from llm_forget.evals.records import TokenRecord, row_means
from llm_forget.evals.stats import Rows


@metric(paper="arXiv:2012.07805", chart="bars")
def extraction_strength(records: Sequence[TokenRecord], *, include_last: bool = True, floor: bool = False) -> Rows:
    """1 - k/n, where k is the smallest number of answer tokens after which all others are predicted; ``[N]``.

    In [0, 1]: 1 if the prompt alone is enough, 0 if even the last token is not predicted. n is the number of answer
    tokens, and predicted means ranked first under teacher forcing. open-unlearning excludes the last labelled token
    (end of sequence) and stops at k = n - 1, so that a row scores at least 1/n; ``include_last: false`` with
    ``floor: true`` gives its values, except that a row without answer tokens scores 0 there and is unscored here.
    """

    def strength(record: TokenRecord) -> float:
        hits = record.hits if include_last else record.hits[:-1]
        if not len(hits):
            return float("nan")
        misses = np.flatnonzero(~hits)
        prefix = int(misses[-1]) + 1 if len(misses) else 0
        return 1 - (min(prefix, len(hits) - 1) if floor else prefix) / len(hits)

    return row_means(records, strength)
