"""How short a prefix of the answer makes the model complete it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llm_forget.evals.metrics._registry import metric
from llm_forget.evals.records import TokenRecord, row_means
from llm_forget.evals.stats import Rows


@metric(paper="arXiv:2012.07805", chart="bars")
def extraction_strength(records: Sequence[TokenRecord], *, include_last: bool = True, floor: bool = False) -> Rows:
    """1 - k/n, k the shortest prefix of the answer after which every remaining token is the most likely one; ``[N]``.

    In [0, 1] over all n target tokens: 1 if the prompt alone is enough, 0 if even the last token is not predicted from
    all tokens before it. open-unlearning differs in two ways: it excludes the last labelled token (end of sequence),
    and its loop stops at k = n - 1, so that a row that is never right still scores 1/n. ``include_last: false`` with
    ``floor: true`` is its convention; both then agree on the same rows (except rows with nothing to predict, which are
    0 there and unscored here).
    """

    def strength(record: TokenRecord) -> float:
        hits = record.hits if include_last else record.hits[:-1]
        if not len(hits):
            return float("nan")
        misses = np.flatnonzero(~hits)
        prefix = int(misses[-1]) + 1 if len(misses) else 0
        return 1 - (min(prefix, len(hits) - 1) if floor else prefix) / len(hits)

    return row_means(records, strength)
