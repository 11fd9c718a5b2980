"""Number the subjects of rows. Rows about one subject are alike, so bootstrap intervals resample whole subjects."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.int64]  # [n] number of the subject of each scored row, from 0


def subject_numbers(rows: NDArray[np.float64], subjects: Sequence[str] | None) -> Numbers:
    """Return the number of the subject of each scored row (not NaN) of ``rows`` ``[N]``: ``[n]``, from 0.

    Without subjects, or with only one, each row counts as its own subject.
    """
    places = np.flatnonzero(~np.isnan(rows))
    if subjects is not None and len(places):
        _, numbers = np.unique(np.asarray(subjects)[places], return_inverse=True)
        if numbers.max() > 0:
            return numbers
    return np.arange(len(places))


def subject_count(numbers: Numbers) -> int:
    """Return how many subjects ``numbers`` contain: the highest number plus 1, or 0 without rows."""
    return int(numbers.max(initial=-1)) + 1


def drawn_rows(draws: NDArray[np.int64], numbers: Numbers) -> NDArray[np.int64]:
    """Return how often each row is drawn, ``[b, n]``, if the subjects ``[b, g]`` are drawn with all their rows."""
    return occurrences(draws, subject_count(numbers))[..., numbers]


def occurrences(values: NDArray[np.int64], groups: int, weights: NDArray[np.int64] | None = None) -> NDArray[Any]:
    """Count how often each number from 0 to ``groups - 1`` occurs along the last axis of ``values`` ``[..., n]``.

    Return ``[..., groups]``. Each value counts as often as its weight in ``weights`` ``[..., n]`` (default: once).
    """
    values = values if weights is None else np.broadcast_to(values, weights.shape)
    rows = values.reshape(-1, values.shape[-1])  # [b, n]
    flat = (rows + groups * np.arange(len(rows))[:, None]).ravel()  # [b n]
    counts = np.bincount(flat, None if weights is None else weights.ravel(), len(rows) * groups)
    return counts.reshape(*values.shape[:-1], groups)
