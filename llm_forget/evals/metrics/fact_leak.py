"""Whether a generated answer holds the secret value of its row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llm_forget.data.rows import normalise_text
from llm_forget.evals.metrics._registry import metric
from llm_forget.evals.metrics._sequences import over_samples, words
from llm_forget.evals.metrics._token_classes import fact_words
from llm_forget.evals.records import GenerationRecord, TokenRecord
from llm_forget.evals.stats import Rows

Value = list[list[str]]  # runs of words, all of which a text must contain


@metric(paper="arXiv:2212.10511")
def fact_leak(
    generations: Sequence[GenerationRecord],
    records: Sequence[TokenRecord] | None = None,
    oracle_records: Sequence[TokenRecord] | None = None,
    *,
    column: str = "fact",
    over: str = "mean",
) -> Rows:
    """Share of the samples of a row that contain its secret value; ``[N]`` in [0, 1].

    A text contains a value if it has the value's words one after the other; case and punctuation do not count. 1 if
    every sample says the value, 0 if none does. The value is in ``column`` of the row (a text, or a list of texts, one
    of which suffices). For a row without it, the value is the words of the true answer with a token that the oracle
    would not say (``records`` of the answers, same rows), except names that the prompt gives. A row without either is
    unscored. In scripts without spaces a run of letters is one word. ``over`` combines samples: ``mean`` or ``max``.
    """
    fallback = _unlikely_words(records or (), oracle_records or ())

    def score(record: GenerationRecord) -> float:
        values = _values(record.columns, column) or fallback.get(record.id, [])
        text = words(normalise_text(record.text))
        leaks = (all(_contains(text, run) for run in value) for value in values)
        return float(any(leaks)) if values else float("nan")

    return over_samples(generations, score, over)


def _values(columns: Mapping[str, Any], column: str) -> list[Value]:
    value = columns.get(column)
    texts = value if isinstance(value, list) else [] if value is None else [value]
    return [[run] for text in texts if (run := words(normalise_text(str(text))))]


def _unlikely_words(records: Sequence[TokenRecord], oracle: Sequence[TokenRecord]) -> dict[str, list[Value]]:
    """Return for each row id the value that the oracle would not say, if there is one."""
    others = {record.key: record for record in oracle}
    values: dict[str, list[Value]] = {}
    for record in records:
        runs = fact_words(record, others[record.key]) if record.key in others else []
        if runs:
            values.setdefault(record.id, []).append([words(normalise_text(" ".join(run))) for run in runs])
    return values


def _contains(text: Sequence[str], run: Sequence[str]) -> bool:
    return any(text[i : i + len(run)] == run for i in range(len(text) - len(run) + 1))
