"""The share of the answer that the model completes from a prefix, for the shortest prefix that is sufficient."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llm_forget.evals.metrics._registry import metric
from llm_forget.evals.records import TokenRecord, row_means
from llm_forget.evals.stats import Rows


@metric(paper="arXiv:2012.07805", chart="bars")
def extraction_strength(records: Sequence[TokenRecord], *, include_last: bool = True, floor: bool = False) -> Rows:
    """Return 1 - k/n, where k is the least number of answer tokens after which the model predicts the rest; ``[N]``.

    The value is in [0, 1]: 1 if the prompt alone is enough, 0 if even the last token is not predicted. n is the number
    of answer tokens. A token is predicted if it ranks first under teacher forcing. ``include_last: false`` excludes the
    last labelled token (end of the answer), and ``floor: true`` limits k to n - 1. open-unlearning does both, and gives
    0 to a row without answer tokens. Here such a row is unscored.
    """

    def strength(record: TokenRecord) -> float:
        hits = record.hits if include_last else record.hits[:-1]
        if not len(hits):
            return float("nan")
        misses = np.flatnonzero(~hits)
        prefix = int(misses[-1]) + 1 if len(misses) else 0
        return 1 - (min(prefix, len(hits) - 1) if floor else prefix) / len(hits)

    return row_means(records, strength)
