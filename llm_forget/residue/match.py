"""Which parts of many texts occur in a block of bytes: every part of a given length is found, in one pass.

The block is looked at in steps of ``stride`` bytes, eight bytes at a time, and each eight are looked up among the eight
at *every* place of the texts. Where they are the same, the match is extended to both sides. Where the texts are long it
is the other way round, every place of the block and few of the texts: slower, in a fraction of the memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

KEY = 8
MANY = 2**22  # bytes of needles, of which not every place is kept
DISTINCT = 5  # bytes that a part must have, to say anything: "aaaaaaaa" is everywhere
_ODD = np.uint64(0x9E3779B97F4A7C15)  # spreads the keys over a table


@dataclass(frozen=True)
class Needle:
    """One form of a text: ``need`` of its bytes in a row are a find; it stands for so many ``characters``."""

    data: bytes
    text: int
    encoding: str
    need: int
    characters: int


@dataclass(frozen=True)
class Match:
    """``needle.data[begin:end]`` is what the block holds from ``place`` on."""

    needle: int
    begin: int
    end: int
    place: int


class Matcher:
    """Looks for all needles at once."""

    def __init__(self, needles: Sequence[Needle]) -> None:
        self.needles = list(needles)
        # Any run of `need` bytes holds eight that begin at a multiple of the stride; or of the step, in the needle.
        free = [needle.need - KEY + 1 for needle in needles]
        many = sum(len(needle.data) for needle in needles) > MANY
        self.stride = 1 if many else min([KEY, *free])
        steps = free if many else [1] * len(free)
        parts = [_keys(needle.data, step) for needle, step in zip(needles, steps, strict=True)]
        keys = np.concatenate([np.zeros(0, np.uint64), *parts])
        owners = np.repeat(np.arange(len(needles), dtype=np.int32), [len(part) for part in parts])
        starts = [np.arange(len(part), dtype=np.int32) * step for part, step in zip(parts, steps, strict=True)]
        places = np.concatenate([np.zeros(0, np.int32), *starts])
        order = np.argsort(keys, kind="stable")
        self.keys, self.owners, self.places = keys[order], owners[order], places[order]
        bits = min(24, max(12, len(keys).bit_length() + 6))
        self.shift = np.uint64(64 - bits)
        self.table = np.zeros(2**bits, bool)
        self.table[(keys * _ODD) >> self.shift] = True

    def matches(self, block: bytes) -> Iterator[Match]:
        """Longest runs of at least ``need`` bytes."""
        if len(block) < KEY or not self.needles:
            return
        keys = _keys(block, self.stride)
        likely = np.flatnonzero(self.table[(keys * _ODD) >> self.shift])
        values = keys[likely]
        first, behind = (np.searchsorted(self.keys, values, side) for side in ("left", "right"))
        seen: dict[tuple[int, int], int] = {}  # needle and shift against the block -> end of the run found there
        for number in np.flatnonzero(behind > first):
            place = int(likely[number]) * self.stride
            for entry in range(int(first[number]), int(behind[number])):
                owner, inside = int(self.owners[entry]), int(self.places[entry])
                if seen.get((owner, place - inside), -1) > place:
                    continue
                match = self._extended(owner, inside, block, place)
                seen[owner, place - inside] = match.place + match.end - match.begin
                if self._is_find(match):
                    yield match

    def _extended(self, owner: int, inside: int, block: bytes, place: int) -> Match:
        data = self.needles[owner].data
        end = inside + _shared(data[inside:], block[place : place + len(data) - inside])
        back = _shared(data[:inside][::-1], block[max(0, place - inside) : place][::-1])
        return Match(owner, inside - back, end, place - back)

    def _is_find(self, match: Match) -> bool:
        needle = self.needles[match.needle]
        return match.end - match.begin >= needle.need and len(set(needle.data[match.begin : match.end])) >= DISTINCT


def _keys(data: bytes, stride: int) -> np.ndarray:
    """Eight bytes as one number, from every ``stride``-th place on."""
    count = max(0, (len(data) - KEY) // stride + 1)
    return np.ndarray((count,), "<u8", data, strides=(stride,)).copy() if count else np.zeros(0, np.uint64)


def _shared(one: bytes, other: bytes) -> int:
    """How many bytes both begin with."""
    length = min(len(one), len(other))
    if one[:length] == other[:length]:
        return length
    differ = np.frombuffer(one, np.uint8, length) != np.frombuffer(other, np.uint8, length)
    return int(differ.argmax())
