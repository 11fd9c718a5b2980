"""Whether a generated answer contains the secret value of its row."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from llm_forget.data.rows import normalise_text
from llm_forget.evals.metrics._registry import metric
from llm_forget.evals.metrics._sequences import over_samples
from llm_forget.evals.metrics._token_classes import fact_words
from llm_forget.evals.records import GenerationRecord, TokenRecord
from llm_forget.evals.stats import Rows

Value = list[list[str]]  # runs of words, all of which a text must contain

# Letters of scripts without spaces between words, or whose particles follow without a space: Thai and Lao, Burmese,
# Hangul, Khmer, kana, Han.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u3005\u3007\u3040-\u30fa\u30fc-\u30ff\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3\uf900-\ufaff\U00020000-\U0003ffff"
)
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")
_FUNCTION_WORDS = frozenset(
    (
        "a", "an", "the", "of", "in", "on", "at", "to", "for", "from", "by", "with", "as", "and", "or", "but", "is",
        "are", "was", "were", "be", "been", "it", "its", "he", "his", "she", "her", "they", "their", "this", "that",
        "who", "which", "has", "have", "had",
    )
)  # fmt: skip


@metric(paper="arXiv:2212.10511")
def fact_leak(
    generations: Sequence[GenerationRecord],
    records: Sequence[TokenRecord] | None = None,
    oracle_records: Sequence[TokenRecord] | None = None,
    *,
    column: str = "fact",
    over: str = "mean",
) -> Rows:
    """Return the share of the samples of each row that contain the secret value of the row; ``[N]``, in [0, 1].

    The value is in ``column`` of the row: a text, or a list of texts, one of which suffices. A sample contains the
    value if it contains exactly the value's words one after the other. Case and punctuation do not count. In scripts
    without spaces, each letter is a word. ``over`` (``mean`` or ``max``) combines the samples.

    For a row without the column, ``records`` of the true answers give the value: the runs of words with a token that
    the oracle does not rank first, except names in the question. A sample must contain all these runs. Short words and
    function words at the ends of a run are dropped if others remain. A row without a value is unscored.
    """
    fallback = _unlikely_words(records or (), oracle_records or ())

    def score(record: GenerationRecord) -> float:
        values = _values(record.columns, column) or fallback.get(record.id, [])
        text = _words(record.text)
        leaks = (all(_contains(text, run) for run in value) for value in values)
        return float(any(leaks)) if values else float("nan")

    return over_samples(generations, score, over)


def _values(columns: Mapping[str, Any], column: str) -> list[Value]:
    value = columns.get(column)
    texts = value if isinstance(value, list) else [] if value is None else [value]
    return [[run] for text in texts if (run := _words(str(text)))]


def _unlikely_words(records: Sequence[TokenRecord], oracle: Sequence[TokenRecord]) -> dict[str, list[Value]]:
    """Map the id of a row to the words that the oracle would not say, one value per answer with such words."""
    others = {record.key: record for record in oracle}
    values: dict[str, list[Value]] = {}
    for record in records:
        runs = fact_words(record, others[record.key]) if record.key in others else []
        if runs:
            telling = [part for run in runs if (part := _trimmed(run))] or runs
            values.setdefault(record.id, []).append([_words(" ".join(run)) for run in telling])
    return values


def _trimmed(run: Sequence[str]) -> list[str]:
    """Return the run without short words and function words at its ends; empty if only such words are in it."""
    places = [i for i, word in enumerate(run) if _tells(word)]
    return list(run[places[0] : places[-1] + 1]) if places else []


def _tells(word: str) -> bool:
    # Short words with a capital or a digit may be names and numbers; letters without case are words of other scripts.
    return word.casefold() not in _FUNCTION_WORDS and not (len(word) < 3 and word.islower())


def _words(text: str) -> list[str]:
    """Return the words of a text without case. In scripts without spaces, each letter is a word."""
    return _WORD.findall(normalise_text(text).casefold())


def _contains(text: Sequence[str], run: Sequence[str]) -> bool:
    return any(text[i : i + len(run)] == run for i in range(len(text) - len(run) + 1))
