"""The share of the tokens of one class that greedy decoding predicts."""

from __future__ import annotations

from collections.abc import Sequence

from llm_forget.core.errors import EvaluationError
from llm_forget.core.registry import did_you_mean
from llm_forget.evals.metrics._registry import metric
from llm_forget.evals.metrics._token_classes import CLASSES, token_classes
from llm_forget.evals.records import TokenRecord, row_means
from llm_forget.evals.stats import Rows


@metric(paper="arXiv:2205.10770")
def token_class_memorization(
    records: Sequence[TokenRecord], oracle_records: Sequence[TokenRecord], *, token_class: str = "fact"
) -> Rows:
    """Return the share of one class's tokens that the model ranks first under teacher forcing; ``[N]``, in [0, 1].

    The classes are ``name`` (a token of a word that is capitalised in the question), ``fact`` (any other token that the
    oracle does not rank first) and ``template`` (any other token). By definition the oracle has 0 on ``fact`` and 1 on
    ``template``; another oracle would be between 0 and 1. A row without tokens of the class is unscored. Raises
    EvaluationError for another class.
    """
    if token_class not in CLASSES:
        hint = did_you_mean(token_class, CLASSES)
        raise EvaluationError(f"metric 'token_class_memorization' has no token_class '{token_class}'; {hint}")
    others = {record.key: record for record in oracle_records}

    def share(record: TokenRecord) -> float:
        other = others.get(record.key)
        classes = None if other is None else token_classes(record, other)
        hits = record.hits[:0] if classes is None else record.hits[classes == token_class]
        return float(hits.mean()) if len(hits) else float("nan")

    return row_means(records, share)
