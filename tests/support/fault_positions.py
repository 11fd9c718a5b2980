"""Where faults are injected: by default at a sample of all possible positions, under ``-m exhaustive`` at each.

    @FAULTS
    def test_wherever_a_write_fails_the_old_file_or_the_new_one_is_there(faults):
        for at in faults.of(number_of_writes):
            ...

The sample has a fixed seed, contains the first and the last position, and is printed, so that pytest shows it when the
test fails.
"""

import random
from dataclasses import dataclass

import pytest

SIZE = 8  # positions of a sample


@dataclass(frozen=True)
class FaultPositions:
    size: int | None  # None: all

    def of(self, count: int, *, size: int | None = None) -> list[int]:
        """Positions below ``count``, in order; ``size`` in place of the usual size of a sample."""
        positions = list(range(count))
        if self.size is not None and count > (size := size or self.size):
            inner = random.Random(0).sample(positions[1:-1], size - 2)
            positions = sorted([positions[0], *inner, positions[-1]])
        print(f"faults at {positions} of {count} positions")
        return positions

    def __str__(self) -> str:
        return "all positions" if self.size is None else "sample"


FAULTS = pytest.mark.parametrize(
    "faults",
    [FaultPositions(SIZE), pytest.param(FaultPositions(None), marks=[pytest.mark.exhaustive, pytest.mark.slow])],
    ids=str,
)
