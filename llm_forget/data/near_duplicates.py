"""Find the near-duplicates of a few rows. Rows are compared by their sets of character 5-grams (as 64-bit hashes)."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from llm_forget.core.errors import DataError
from llm_forget.data.rows import normalise_text

GRAM = 5  # characters
NEAR = 0.7  # minimum Jaccard similarity of near-duplicates
CONTAINED = 0.9  # minimum share of a row's 5-grams in a longer row that contains it
MIN_GRAMS = 24  # minimum 5-grams of a contained row; shorter ones, such as "Yes.", are in many rows
ROUNDS = 8  # maximum rounds of near-duplicates of near-duplicates
_WEIGHTS = np.random.default_rng(5).integers(1, 2**63, GRAM, dtype=np.uint64) * np.uint64(2) + np.uint64(1)


class NearDuplicate(NamedTuple):
    """A row that resembles a query row or another near-duplicate."""

    id: str
    of: str  # id of the row that it resembles
    how: str  # near; contains: the row contains the other one; excerpt: the row is contained in the other one
    similarity: float  # `near`: Jaccard similarity; otherwise: share of the shorter row that is in the longer one


def grams(text: str) -> np.ndarray:
    """Return the sorted hashes ``[S]`` of a normalised text's character 5-grams. A shorter text is padded to one."""
    codes = np.frombuffer(normalise_text(text).encode("utf-32-le"), dtype=np.uint32).astype(np.uint64)
    if len(codes) < GRAM:
        codes = np.concatenate([codes, np.zeros(GRAM - len(codes), dtype=np.uint64)])
    windows = np.lib.stride_tricks.sliding_window_view(codes, GRAM)  # [S, 5]
    return np.unique((windows * _WEIGHTS).sum(axis=1, dtype=np.uint64))


class GramIndex:
    """An index of (id, text) rows by their 5-grams. It finds the row that is most similar to a given text."""

    def __init__(self, rows: Sequence[tuple[str, str]]) -> None:
        row_grams = [grams(text) for _, text in rows]
        self.ids = [row_id for row_id, _ in rows]
        self.sizes = np.array([len(values) for values in row_grams])
        values, row_numbers = np.concatenate(row_grams), np.repeat(np.arange(len(row_grams)), self.sizes)
        order = np.argsort(values, kind="stable")
        self.values, self.row_numbers = values[order], row_numbers[order]

    def match(self, row_id: str, text: str, near: float) -> NearDuplicate | None:
        """Compare a text with the most similar row of the index. Return None if they are not near-duplicates."""
        query = grams(text)
        first, last = (np.searchsorted(self.values, query, side) for side in ("left", "right"))
        counts = last - first
        shared = int((counts > 0).sum())
        if shared < min(near * len(query), CONTAINED * min(len(query), int(self.sizes.min()))):
            return None
        offsets = np.repeat(first - np.concatenate([[0], np.cumsum(counts)[:-1]]), counts)
        common = np.bincount(self.row_numbers[offsets + np.arange(counts.sum())], minlength=len(self.ids))  # [M]
        jaccard = common / (len(query) + self.sizes - common)
        best = int(jaccard.argmax())
        if jaccard[best] >= near:
            return NearDuplicate(row_id, self.ids[best], "near", round(float(jaccard[best]), 3))
        shorter = np.minimum(self.sizes, len(query))
        share = np.where(shorter >= MIN_GRAMS, common / shorter, 0.0)
        best = int(share.argmax())
        if share[best] >= CONTAINED:
            relation = "contains" if self.sizes[best] <= len(query) else "excerpt"
            return NearDuplicate(row_id, self.ids[best], relation, round(float(share[best]), 3))
        return None


def closure(
    queries: Sequence[tuple[str, str]], rows: Callable[[], Iterable[tuple[str, str]]], near: float = NEAR
) -> list[NearDuplicate]:
    """Return the near-duplicates of the queries, the near-duplicates of these, and so on, in the order of discovery.

    ``queries`` are (id, text) pairs. Each call of ``rows()`` returns a new iterator over such pairs. ``near`` is the
    minimum Jaccard similarity. Raise DataError if ``near`` is not in (0, 1], or if the last of `ROUNDS` rounds still
    finds near-duplicates.
    """
    if not 0 < near <= 1:
        raise DataError(f"near is {near}; allowed: a similarity above 0 and at most 1")
    seen_ids, duplicates, newest = {row_id for row_id, _ in queries}, [], list(queries)
    for _ in range(ROUNDS):
        index = GramIndex(newest)
        newest = []
        for row_id, text in rows():
            if row_id not in seen_ids and (duplicate := index.match(row_id, text, near)) is not None:
                duplicates.append(duplicate)
                newest.append((row_id, text))
        seen_ids.update(row_id for row_id, _ in newest)
        if not newest:
            return duplicates
    raise DataError(
        f"after {ROUNDS} rounds there are still near-duplicates of near-duplicates ({len(duplicates)} rows); at a "
        f"similarity of {near} too many rows are similar: raise --near"
    )
