"""Which rows a step sees: index arithmetic, seeded, and the same for every number of processes.

Slot j of epoch e holds the j-th row of that epoch's order of the primary split, and position ``e * n + j`` of every other
split's endless stream. Processes take their slots from one global order, so how it is cut into processes, micro-batches
and accumulated steps does not change what a step sees, and no position is kept anywhere: a resumed run computes it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np
from torch.utils.data import Sampler

PADDING = -1  # a slot without rows
_BLOCK = 4096
_ORDER, _CHOICE, _PRIMARY = 0, 1, 2


class Stream(Protocol):
    """An endless sequence of row indices that can be entered anywhere."""

    def take(self, start: int, count: int) -> np.ndarray: ...


class RetainStream:
    """Endless sequence over one or several concatenated sources, each gone through without replacement, pass by pass.

    Args:
        sizes: rows of each source; row ``i`` of source ``s`` has index ``sum(sizes[:s]) + i``.
        weights: share of each source; None to treat all rows alike (one pass is then one pass over everything).
        seed: of every order and choice. Two streams with different seeds are unrelated.

    Raises:
        ValueError: an empty source, or weights that are not one positive number a source.
    """

    def __init__(self, sizes: Sequence[int], weights: Sequence[float] | None = None, seed: int = 0) -> None:
        if not sizes or min(sizes) < 1:
            raise ValueError(f"a stream needs sources with at least one row each, not sizes {list(sizes)}")
        if weights is not None and (len(weights) != len(sizes) or not all(0 < w < float("inf") for w in weights)):
            raise ValueError(f"a stream over {len(sizes)} sources needs as many weights above 0, not {list(weights)}")
        self._sizes = [int(size) for size in sizes] if weights is not None else [int(sum(sizes))]
        self._edges = np.cumsum(np.asarray(weights, dtype=np.float64) / sum(weights))[:-1] if weights else np.zeros(0)
        self._starts = np.concatenate([[0], np.cumsum(self._sizes)[:-1]])
        self._seed = seed

    def take(self, start: int, count: int) -> np.ndarray:
        """Indices at positions ``start`` to ``start + count``, ``[count]``."""
        sources = self._sources(start + count)  # [start + count]
        out = np.empty(count, dtype=np.int64)
        for source in range(len(self._sizes)):
            here = sources[start:] == source  # [count]
            done = int((sources[:start] == source).sum())
            out[here] = self._starts[source] + self._draws(source, done, int(here.sum()))
        return out

    def _sources(self, stop: int) -> np.ndarray:
        """Which source each position up to ``stop`` takes from. Recomputed from 0: a million takes some milliseconds."""
        if len(self._sizes) == 1:
            return np.zeros(stop, dtype=np.int64)
        blocks = [_random(self._seed, _CHOICE, b).random_sample(_BLOCK) for b in range(-(-stop // _BLOCK))]
        return np.searchsorted(self._edges, np.concatenate([*blocks, np.zeros(0)])[:stop], side="right")

    def _draws(self, source: int, start: int, count: int) -> np.ndarray:
        size = self._sizes[source]
        passes = range(start // size, -(-(start + count) // size))
        orders = [_random(self._seed, _ORDER, source, p).permutation(size) for p in passes]
        skip = start - passes.start * size
        return np.concatenate([*orders, np.zeros(0, dtype=np.int64)])[skip : skip + count]


class StepSampler(Sampler[dict[str, int]]):
    """One epoch of slots, ``{primary: index, stream name: index, ...}``; -1 in every place for a padding slot.

    Give it to a DataLoader over `SplitRows`; accelerate deals its batches to the processes in turn, so that every group
    of ``batch_size * world_size`` slots is one step of the whole world. An epoch is padded to a whole number of such
    groups, so no row is seen twice to fill one and none is dropped.

    Args:
        n_primary: rows of the split that an epoch is one pass over.
        streams: the other splits.
        batch_size: slots of one process between two optimiser steps (micro-batch times accumulation).
        world_size: processes.
        seed: of the order of the primary split.
        primary: its name.
        shuffle: False keeps the order of the data.
    """

    def __init__(
        self,
        n_primary: int,
        streams: Mapping[str, Stream] | None = None,
        *,
        batch_size: int = 1,
        world_size: int = 1,
        seed: int = 0,
        primary: str = "forget",
        shuffle: bool = True,
    ) -> None:
        if n_primary < 1 or batch_size < 1 or world_size < 1:
            raise ValueError(
                f"rows, batch size and world size must be 1 or more, not {n_primary}, {batch_size}, {world_size}"
            )
        self._n, self._streams, self._primary = n_primary, dict(streams or {}), primary
        self._group, self._seed, self._shuffle, self._epoch = batch_size * world_size, seed, shuffle, 0

    def set_epoch(self, epoch: int) -> None:
        """Which pass the next iteration is."""
        self._epoch = epoch

    def __len__(self) -> int:
        return -(-self._n // self._group) * self._group

    def __iter__(self) -> Iterator[dict[str, int]]:
        slots = self.slots(self._epoch)
        for place in range(len(self)):
            yield {name: int(indices[place]) for name, indices in slots.items()}

    def slots(self, epoch: int) -> dict[str, np.ndarray]:
        """All slots of an epoch, by split, each ``[len(self)]``."""
        order = np.arange(self._n)
        if self._shuffle:
            order = _random(self._seed, _PRIMARY, epoch).permutation(self._n)
        columns = {self._primary: order}
        columns |= {name: stream.take(epoch * self._n, self._n) for name, stream in self._streams.items()}
        padding = np.full(len(self) - self._n, PADDING)
        return {name: np.concatenate([column, padding]) for name, column in columns.items()}


def _random(*key: int) -> np.random.RandomState:
    # RandomState, not Generator: its streams are frozen, so a run can be resumed after an update of NumPy.
    return np.random.RandomState(np.random.MT19937(np.random.SeedSequence(key)))
