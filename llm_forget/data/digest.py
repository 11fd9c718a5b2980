"""Compute digests, row lengths and id lists of tokenised rows. Tables are read in parts to limit memory."""

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

_PART = 4096  # rows; changing it changes every digest


def tokens_digest(rows: Dataset, row_numbers: Sequence[int] | np.ndarray | None = None) -> str:
    """Return the SHA-256 of ids, token ids and labels of the rows ``row_numbers`` in this order (default: all rows)."""
    digest = hashlib.sha256()
    count = len(rows) if row_numbers is None else len(row_numbers)
    # Contiguous rows are read as one slice; gathering single rows is slow.
    start = 0 if row_numbers is None else int(row_numbers[0]) if count else 0
    contiguous = row_numbers is None or bool((np.diff(row_numbers) == 1).all())
    table = rows.select_columns(["id", "input_ids", "labels"]).with_format("arrow")
    for begin in range(0, count, _PART):
        end = min(begin + _PART, count)
        part = table[range(start + begin, start + end)] if contiguous else table[list(row_numbers[begin:end])]  # type: ignore[index]
        digest.update(json.dumps(part["id"].to_pylist()).encode())
        for name in ("input_ids", "labels"):
            lists = part[name].combine_chunks()
            digest.update(_lengths(lists).tobytes())
            digest.update(np.asarray(lists.flatten(), dtype=np.int32).tobytes())
    return f"sha256:{digest.hexdigest()}"


def row_lengths(rows: Dataset) -> np.ndarray:
    """Return the number of tokens of each row, ``[N]``."""
    return _lengths(arrow_column(rows, "input_ids"))


def unique_ids(rows: Dataset) -> pyarrow.Array:
    """Return the distinct row ids in order of first occurrence. All windows of a long row have the same id."""
    import pyarrow.compute as pc

    return pc.unique(arrow_column(rows, "id"))


def id_lines(ids: pyarrow.Array) -> bytes:
    """Return the content of an id file: one id per line."""
    return b"".join(line.encode() + b"\n" for line in ids.to_pylist())


def _lengths(lists: pyarrow.Array | pyarrow.ChunkedArray) -> np.ndarray:
    import pyarrow.compute as pc

    return np.asarray(pc.list_value_length(lists), dtype=np.int32)
