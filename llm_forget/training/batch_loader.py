"""A torch dataset indexed by slots (see `row_stream.py`), and a loader that passes the epoch to its sampler."""

from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import DataLoader


class Slots(torch.utils.data.Dataset[Any]):
    """A dataset that returns, for a slot, one row of each split, or None for each split if the slot is padding."""

    def __init__(self, splits: dict[str, Dataset]) -> None:
        self.splits = splits

    def __len__(self) -> int:
        return len(next(iter(self.splits.values())))

    def __getitem__(self, slot: dict[str, int]) -> dict[str, dict[str, Any] | None]:
        return {split: None if row < 0 else {**self.splits[split][row], "index": row} for split, row in slot.items()}


class EpochLoader(DataLoader[Any]):
    """A loader that passes the epoch to its sampler, because transformers sets the epoch only on the loader."""

    def set_epoch(self, epoch: int) -> None:
        self.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]
