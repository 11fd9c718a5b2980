"""Find parts of many search texts in a block of bytes, in one pass. A part must have a minimum length.

A table holds the eight bytes at every position of the texts. The search looks up the eight bytes at every ``stride``-th
position of the block, and extends each match in both directions. If the texts have more than `LARGE` bytes, the table
holds only some of their positions, and every position of the block is looked up. This is slower but needs less memory.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

KEY = 8
LARGE = 2**22  # bytes of needles above which the table holds only some of their positions
MIN_DISTINCT = 5  # minimum distinct bytes of a match; excludes "aaaaaaaa"
_ODD = np.uint64(0x9E3779B97F4A7C15)  # multiplier of the hash of keys


@dataclass(frozen=True)
class Needle:
    """A search text in one encoding."""

    data: bytes
    text: int  # index of the search text
    encoding: str
    need: int  # minimum length of a match in bytes
    characters: int  # number of letters and digits in the text


@dataclass(frozen=True)
class Match:
    """A match: bytes ``begin:end`` of a needle's data occur in the block at ``offset``."""

    needle: int  # index of the needle
    begin: int
    end: int
    offset: int


class Matcher:
    """A table of all needles, which finds them in a block of bytes in one pass."""

    def __init__(self, needles: Sequence[Needle]) -> None:
        self.needles = list(needles)
        # Any `need` consecutive bytes contain a key that starts at a multiple of the stride, or of the needle's step.
        free = [needle.need - KEY + 1 for needle in needles]
        many = sum(len(needle.data) for needle in needles) > LARGE
        self.stride = 1 if many else min([KEY, *free])
        steps = free if many else [1] * len(free)
        parts = [_keys(needle.data, step) for needle, step in zip(needles, steps, strict=True)]
        keys = np.concatenate([np.zeros(0, np.uint64), *parts])
        needle_numbers = np.repeat(np.arange(len(needles), dtype=np.int32), [len(part) for part in parts])
        starts = [np.arange(len(part), dtype=np.int32) * step for part, step in zip(parts, steps, strict=True)]
        offsets = np.concatenate([np.zeros(0, np.int32), *starts])
        order = np.argsort(keys, kind="stable")
        self.keys, self.needle_numbers, self.offsets = keys[order], needle_numbers[order], offsets[order]
        bits = min(24, max(12, len(keys).bit_length() + 6))
        self.shift = np.uint64(64 - bits)
        self.table = np.zeros(2**bits, bool)
        self.table[(keys * _ODD) >> self.shift] = True

    def matches(self, block: bytes) -> Iterator[Match]:
        """Yield all matches of at least ``Needle.need`` bytes in a block, each extended as far as possible."""
        if len(block) < KEY or not self.needles:
            return
        keys = _keys(block, self.stride)
        likely = np.flatnonzero(self.table[(keys * _ODD) >> self.shift])
        values = keys[likely]
        first, last = (np.searchsorted(self.keys, values, side) for side in ("left", "right"))
        run_ends: dict[tuple[int, int], int] = {}  # needle, its offset in the block -> end of the match
        for number in np.flatnonzero(last > first):
            offset = int(likely[number]) * self.stride
            for entry in range(int(first[number]), int(last[number])):
                needle_number, needle_offset = int(self.needle_numbers[entry]), int(self.offsets[entry])
                if run_ends.get((needle_number, offset - needle_offset), -1) > offset:
                    continue
                match = self._extend(needle_number, needle_offset, block, offset)
                run_ends[needle_number, offset - needle_offset] = match.offset + match.end - match.begin
                if self._is_significant(match):
                    yield match

    def _extend(self, needle_number: int, needle_offset: int, block: bytes, offset: int) -> Match:
        data = self.needles[needle_number].data
        end = needle_offset + _shared_prefix(data[needle_offset:], block[offset : offset + len(data) - needle_offset])
        back = _shared_prefix(data[:needle_offset][::-1], block[max(0, offset - needle_offset) : offset][::-1])
        return Match(needle_number, needle_offset - back, end, offset - back)

    def _is_significant(self, match: Match) -> bool:
        needle = self.needles[match.needle]
        return match.end - match.begin >= needle.need and len(set(needle.data[match.begin : match.end])) >= MIN_DISTINCT


def _keys(data: bytes, stride: int) -> np.ndarray:
    """Return, for each ``stride``-th position of ``data``, the next eight bytes as one integer."""
    count = max(0, (len(data) - KEY) // stride + 1)
    return np.ndarray((count,), "<u8", data, strides=(stride,)).copy() if count else np.zeros(0, np.uint64)


def _shared_prefix(first: bytes, second: bytes) -> int:
    """Return the length in bytes of the longest common prefix."""
    length = min(len(first), len(second))
    if first[:length] == second[:length]:
        return length
    differ = np.frombuffer(first, np.uint8, length) != np.frombuffer(second, np.uint8, length)
    return int(differ.argmax())
