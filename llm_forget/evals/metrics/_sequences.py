"""Functions on words and sequences that several metrics use."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from llm_forget.core.errors import EvaluationError
from llm_forget.core.registry import did_you_mean
from llm_forget.evals.records import GenerationRecord, row_means
from llm_forget.evals.stats import Rows

OVER: dict[str, Callable[[Rows], np.float64]] = {"mean": np.mean, "max": np.max}


def words(text: str) -> list[str]:
    """Return the case-folded words: runs of letters, digits and underscores, long in scripts without spaces."""
    return re.findall(r"\w+", text.casefold())


def over_samples(
    generations: Sequence[GenerationRecord], score: Callable[[GenerationRecord], float], over: str = "mean"
) -> Rows:
    """Score each text, and return the ``mean`` or ``max`` (``over``) of the scored samples of each row: ``[N]``.

    A record with NaN or infinite logits is unscored. A row without scored samples is NaN. Raises EvaluationError for
    another value of ``over``.
    """
    if over not in OVER:
        raise EvaluationError(f"samples of a row cannot be combined by '{over}'; {did_you_mean(over, OVER)}")
    return row_means(generations, score, OVER[over])


def common_words(
    generations: Sequence[GenerationRecord],
    common: Callable[[Sequence[str], Sequence[str]], int],
    *,
    normalise: bool,
    over: str,
) -> Rows:
    """Return the number of words that the reference and the generation of each row have in common; ``[N]``.

    ``common`` counts the words. With ``normalise``, divide by the number of words in the reference. A reference without
    words is unscored. ``over`` combines the samples of a row.
    """

    def score(record: GenerationRecord) -> float:
        reference = words(record.reference)
        if not reference:
            return float("nan")
        return common(reference, words(record.text)) / (len(reference) if normalise else 1)

    return over_samples(generations, score, over)


def longest_run(left: Sequence[Hashable], right: Sequence[Hashable]) -> int:
    """Return the length of the longest contiguous run that both sequences contain. The time is O(n m), in NumPy."""
    left_numbers, right_numbers = _numbered(left, right)
    # [m + 1] length of the common run that ends at each index of `right`, after a leading 0
    runs = np.zeros(len(right_numbers) + 1, dtype=np.int64)
    best = 0
    for item in left_numbers:
        runs[1:] = np.where(right_numbers == item, runs[:-1] + 1, 0)
        best = max(best, int(runs.max()))
    return best


def longest_subsequence(left: Sequence[Hashable], right: Sequence[Hashable]) -> int:
    """Return the length of the longest common subsequence (gaps allowed). The time is O(n m), in NumPy."""
    left_numbers, right_numbers = _numbered(left, right)
    # [m + 1] length of the longest common subsequence of the items of `left` so far and each prefix of `right`
    lengths = np.zeros(len(right_numbers) + 1, dtype=np.int64)
    for item in left_numbers:
        lengths[1:] = np.maximum.accumulate(np.where(right_numbers == item, lengths[:-1] + 1, lengths[1:]))
    return int(lengths[-1])


def window_matches(
    reference: Sequence[Hashable] | str, generated: Sequence[Hashable] | str, n: int
) -> NDArray[np.bool_]:
    """Return whether the generated sequence contains each window of ``n`` reference items: ``[len - n + 1]``."""
    windows = {_window(generated, i, n) for i in range(len(generated) - n + 1)}
    return np.array([_window(reference, i, n) in windows for i in range(len(reference) - n + 1)], dtype=np.bool_)


def _window(items: Sequence[Hashable] | str, start: int, n: int) -> Hashable:
    part = items[start : start + n]
    return part if isinstance(part, str) else tuple(part)


def _numbered(left: Sequence[Hashable], right: Sequence[Hashable]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Replace the items of both sequences by integers. Equal items get equal integers."""
    numbers: dict[Hashable, int] = {}
    first, second = ([numbers.setdefault(item, len(numbers)) for item in items] for items in (left, right))
    return np.array(first, dtype=np.int64), np.array(second, dtype=np.int64)
