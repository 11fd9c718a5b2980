"""Choose the rows of each step by seeded permutations. The choice does not depend on the number of processes.

A slot names one row of every split. Slot j of epoch e names row j of the primary split (n rows) in the order of this
epoch, and of every other split the row at position ``e * n + j`` of its endless stream.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Protocol
from zlib import crc32

import numpy as np
from torch.utils.data import Sampler

from llm_forget.core.errors import ConfigError

PADDING = -1  # row index in a slot without rows
_BLOCK = 4096
_ORDER, _CHOICE, _PRIMARY = 0, 1, 2


class Stream(Protocol):
    """An endless sequence of row indices. ``take`` returns those at positions ``start`` to ``start + count``."""

    def take(self, start: int, count: int) -> np.ndarray: ...


class RetainStream:
    """An endless stream of row indices. Each pass over a source contains each of its rows once, in random order.

    ``sizes`` has the number of rows of each source. Indices continue from one source to the next. ``weights`` has the
    share of each source; None samples all rows equally. Raise ConfigError for an empty source, or for weights that are
    not one positive number per source.
    """

    def __init__(self, sizes: Sequence[int], weights: Sequence[float] | None = None, seed: int = 0) -> None:
        if not sizes or min(sizes) < 1:
            raise ConfigError(f"a stream needs sources with at least one row each, not sizes {list(sizes)}")
        if weights is not None and (len(weights) != len(sizes) or not all(0 < w < float("inf") for w in weights)):
            raise ConfigError(f"a stream over {len(sizes)} sources needs as many weights above 0, not {list(weights)}")
        self._sizes = [int(size) for size in sizes] if weights is not None else [int(sum(sizes))]
        self._edges = np.cumsum(np.asarray(weights, dtype=np.float64) / sum(weights))[:-1] if weights else np.zeros(0)
        self._starts = np.concatenate([[0], np.cumsum(self._sizes)[:-1]])
        self._seed = seed

    @classmethod
    def over(cls, source_index: Sequence[int], weights: Sequence[float] | None = None, seed: int = 0) -> RetainStream:
        """Build a stream over tokenised rows from their column ``source_index``, which must be ascending."""
        # Slicing reads the column at once; NumPy would read it row by row.
        sizes = np.bincount(np.asarray(source_index[:]), minlength=len(weights or ())).tolist()
        return cls(sizes if weights is not None else [sum(sizes)], weights, seed)

    def take(self, start: int, count: int) -> np.ndarray:
        """Return the indices at positions ``start`` to ``start + count``, ``[count]``."""
        sources = self._sources(start + count)  # [start + count]
        out = np.empty(count, dtype=np.int64)
        for source in range(len(self._sizes)):
            here = sources[start:] == source  # [count]
            done = int((sources[:start] == source).sum())
            out[here] = self._starts[source] + self._draws(source, done, int(here.sum()))
        return out

    def _sources(self, stop: int) -> np.ndarray:
        """Return the source of each position below ``stop``, ``[stop]``."""
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
    """A sampler that yields the slots of one epoch, ``{split: row index}``. A padding slot has -1 for every split.

    An epoch is one pass over the first (primary) split. It is padded to a multiple of ``batch_size * world_size``
    slots, so that no row is repeated or dropped. `RankBatches` distributes the slots to processes.

    Args:
        splits: number of rows of each split, or a `Stream` over them.
        paired: splits with the same row indices as the primary split, such as preferred answers to the forget rows.
        batch_size: number of slots of each process in a micro-batch.

    Raises:
        ConfigError: a size below 1, or a paired split whose size differs from the primary split's.
    """

    def __init__(
        self,
        splits: Mapping[str, int | Stream],
        *,
        paired: Collection[str] = (),
        batch_size: int = 1,
        world_size: int = 1,
        seed: int = 0,
    ) -> None:
        (self._primary, size), *others = splits.items()
        if not isinstance(size, int) or min(size, batch_size, world_size) < 1:
            raise ConfigError(f"{self._primary} rows, batch size and world size must be numbers of 1 or more")
        for name, rows in others:
            if name in paired and rows != size:
                raise ConfigError(f"{name} has {rows} rows for {size} rows of {self._primary}; allowed: one for each")
        self._n, self._group = size, batch_size * world_size
        self._paired = [name for name, _ in others if name in paired]
        self._streams = {
            name: RetainStream([rows], seed=(seed << 32) + crc32(name.encode())) if isinstance(rows, int) else rows
            for name, rows in others
            if name not in paired
        }
        self._seed, self._epoch = seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration."""
        self._epoch = epoch

    def __len__(self) -> int:
        return -(-self._n // self._group) * self._group

    def __iter__(self) -> Iterator[dict[str, int]]:
        for batch in self.batches(1, 0, 1):
            yield from batch

    def batches(self, size: int, rank: int, world_size: int) -> Iterator[list[dict[str, int]]]:
        """Yield the slots of process ``rank`` in the current epoch, in lists of ``size``."""
        slots = self.slots(self._epoch)
        for start in range(rank * size, len(self), world_size * size):
            columns = [indices[start : start + size].tolist() for indices in slots.values()]
            yield [dict(zip(slots, rows, strict=True)) for rows in zip(*columns, strict=True)]

    def slots(self, epoch: int) -> dict[str, np.ndarray]:
        """Return the row indices of all slots of an epoch by split, each ``[len(self)]``."""
        order = _random(self._seed, _PRIMARY, epoch).permutation(self._n)
        columns = dict.fromkeys((self._primary, *self._paired), order)
        columns |= {name: stream.take(epoch * self._n, self._n) for name, stream in self._streams.items()}
        padding = np.full(len(self) - self._n, PADDING)
        return {name: np.concatenate([column, padding]) for name, column in columns.items()}


class RankBatches(Sampler[list[dict[str, int]]]):
    """A sampler of the batches of one process. ``sampler`` must have the same ``batch_size * world_size``."""

    def __init__(self, sampler: StepSampler, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        if not 0 <= rank < world_size or len(sampler) % (batch_size * world_size):
            raise ConfigError(
                f"rank {rank} of {world_size} and batches of {batch_size} do not fit {len(sampler)} slots"
            )
        self.sampler = sampler
        self._batch_size, self._rank, self._world_size = batch_size, rank, world_size

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration."""
        self.sampler.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.sampler) // (self._batch_size * self._world_size)

    def __iter__(self) -> Iterator[list[dict[str, int]]]:
        return self.sampler.batches(self._batch_size, self._rank, self._world_size)


def _random(*key: int) -> np.random.RandomState:
    # RandomState, unlike Generator, gives the same numbers in all versions of NumPy.
    return np.random.RandomState(np.random.MT19937(np.random.SeedSequence(key)))
