"""Rows that say nearly the same as others: shared character 5-grams, counted exactly, one pass over the data a round.

No MinHash: the rows asked about are few, so an index of *their* 5-grams is small, and every other row is compared with
all of them without an estimate. Only 64-bit hashes of the 5-grams are held.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from llm_forget.core.errors import DataError
from llm_forget.data.rows import normalise_text

GRAM = 5  # characters
NEAR = 0.7  # Jaccard similarity from which on two rows are near-duplicates
PART = 0.9  # share of the shorter one's 5-grams from which on it is part of the longer one
LEAST = 24  # 5-grams a row needs before it can be part of another: "Yes." is part of everything
ROUNDS = 8  # of near-duplicates of near-duplicates
_WEIGHTS = np.random.default_rng(5).integers(1, 2**63, GRAM, dtype=np.uint64) * np.uint64(2) + np.uint64(1)


class Near(NamedTuple):
    """A row that is like one asked about."""

    id: str
    of: str  # id of the row that it is like
    how: str  # near | contains | excerpt
    similarity: float  # Jaccard for `near`, otherwise the share of the shorter row that the longer one holds


def grams(text: str) -> np.ndarray:
    """Sorted hashes ``[S]`` of the character 5-grams of the normalised text; of a shorter one the whole."""
    codes = np.frombuffer(normalise_text(text).encode("utf-32-le"), dtype=np.uint32).astype(np.uint64)
    if len(codes) < GRAM:
        codes = np.concatenate([codes, np.zeros(GRAM - len(codes), dtype=np.uint64)])
    windows = np.lib.stride_tricks.sliding_window_view(codes, GRAM)  # [S, 5]
    return np.unique((windows * _WEIGHTS).sum(axis=1, dtype=np.uint64))


class Index:
    """The 5-grams of some rows, to compare others with."""

    def __init__(self, rows: Sequence[tuple[str, str]]) -> None:
        found = [grams(text) for _, text in rows]
        self.ids = [row_id for row_id, _ in rows]
        self.sizes = np.array([len(one) for one in found])
        values, owners = np.concatenate(found), np.repeat(np.arange(len(found)), self.sizes)
        order = np.argsort(values, kind="stable")
        self.values, self.owners = values[order], owners[order]

    def like(self, row_id: str, text: str, near: float) -> Near | None:
        """The row of the index that this one is most like, if it is like any."""
        own = grams(text)
        first, last = (np.searchsorted(self.values, own, side) for side in ("left", "right"))
        counts = last - first
        met = int((counts > 0).sum())
        if met < min(near * len(own), PART * min(len(own), int(self.sizes.min()))):
            return None
        offsets = np.repeat(first - np.concatenate([[0], np.cumsum(counts)[:-1]]), counts)
        common = np.bincount(self.owners[offsets + np.arange(counts.sum())], minlength=len(self.ids))  # [M]
        jaccard = common / (len(own) + self.sizes - common)
        best = int(jaccard.argmax())
        if jaccard[best] >= near:
            return Near(row_id, self.ids[best], "near", round(float(jaccard[best]), 3))
        shorter = np.minimum(self.sizes, len(own))
        share = np.where(shorter >= LEAST, common / shorter, 0.0)
        best = int(share.argmax())
        if share[best] >= PART:
            how = "contains" if self.sizes[best] <= len(own) else "excerpt"
            return Near(row_id, self.ids[best], how, round(float(share[best]), 3))
        return None


def closure(
    asked: Sequence[tuple[str, str]], rows: Callable[[], Iterable[tuple[str, str]]], near: float = NEAR
) -> list[Near]:
    """All rows that are near-duplicates of those asked about, or of one found before, in the order they were found.

    Args:
        asked: (id, text) of the rows asked about.
        rows: gives (id, text) of all rows, anew at every call.
        near: Jaccard similarity from which on rows are near-duplicates, above 0 and at most 1.

    Raises:
        ValueError: ``near`` is no such number, or there is no end: nearly everything is like everything.
    """
    if not 0 < near <= 1:
        raise DataError(f"near is {near}; it is a similarity above 0 and at most 1")
    known, found, newest = {row_id for row_id, _ in asked}, [], list(asked)
    for _ in range(ROUNDS):
        index = Index(newest)
        newest = []
        for row_id, text in rows():
            if row_id not in known and (like := index.like(row_id, text, near)) is not None:
                found.append(like)
                newest.append((row_id, text))
        known.update(row_id for row_id, _ in newest)
        if not newest:
            return found
    raise DataError(
        f"after {ROUNDS} rounds there are still near-duplicates of near-duplicates ({len(found)} rows); at a "
        f"similarity of {near} too much of the data is alike: raise --near"
    )
