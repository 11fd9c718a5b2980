"""The share of answer tokens that greedy decoding predicts."""

from __future__ import annotations

from collections.abc import Sequence

from llm_forget.evals.metrics._registry import metric
from llm_forget.evals.records import TokenRecord, row_means
from llm_forget.evals.stats import Rows


@metric(paper="arXiv:2205.10770")
def exact_memorization(records: Sequence[TokenRecord], *, include_last: bool = True) -> Rows:
    """Return the share of target tokens that the model ranks first under teacher forcing; ``[N]``, in [0, 1].

    If ``include_last`` is false, the last labelled token (end of the answer) is excluded, as in open-unlearning.
    """

    def share(record: TokenRecord) -> float:
        hits = record.hits if include_last else record.hits[:-1]
        return float(hits.mean()) if len(hits) else float("nan")

    return row_means(records, share)
