"""Which rows a table holds, as one number and as a list of ids; made in parts, so that memory stays small."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from llm_forget.data.tables import arrow_column

if TYPE_CHECKING:
    import pyarrow
    from datasets import Dataset

_PART = 4096  # rows; another number is another digest


def tokens_digest(rows: Dataset, places: Sequence[int] | np.ndarray | None = None) -> str:
    """sha256 of ids, token ids and labels of tokenised rows, in order; of those at ``places`` ``[N]``, if given.

    Each part of the rows adds its ids, then for each column the lengths and the numbers as 32-bit integers.
    """
    found = hashlib.sha256()
    count = len(rows) if places is None else len(places)
    # A run of neighbours is read at once; places one by one are gathered, which is slow.
    start = 0 if places is None else int(places[0]) if count else 0
    whole = places is None or bool((np.diff(places) == 1).all())
    table = rows.select_columns(["id", "input_ids", "labels"]).with_format("arrow")
    for begin in range(0, count, _PART):
        end = min(begin + _PART, count)
        part = table[range(start + begin, start + end)] if whole else table[list(places[begin:end])]  # type: ignore[index]
        found.update(json.dumps(part["id"].to_pylist()).encode())
        for name in ("input_ids", "labels"):
            lists = part[name].combine_chunks()
            found.update(_lengths(lists).tobytes())
            found.update(np.asarray(lists.flatten(), dtype=np.int32).tobytes())
    return f"sha256:{found.hexdigest()}"


def row_lengths(rows: Dataset) -> np.ndarray:
    """Tokens of each row, ``[N]``."""
    return _lengths(arrow_column(rows, "input_ids"))


def unique_ids(rows: Dataset) -> pyarrow.Array:
    """Ids in the order in which they first occur; the windows of a long row have one."""
    import pyarrow.compute as pc

    return pc.unique(arrow_column(rows, "id"))


def id_lines(ids: pyarrow.Array) -> bytes:
    """The file that lists ids, one a line."""
    return b"".join(line.encode() + b"\n" for line in ids.to_pylist())


def _lengths(lists: pyarrow.Array | pyarrow.ChunkedArray) -> np.ndarray:
    import pyarrow.compute as pc

    return np.asarray(pc.list_value_length(lists), dtype=np.int32)
