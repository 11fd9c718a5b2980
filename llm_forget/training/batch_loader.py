"""Slots of a step as torch data: a dataset indexed by slots, and a loader that passes the epoch to its sampler."""

from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import DataLoader


class Slots(torch.utils.data.Dataset[Any]):
    """One row of every split for the indices of a slot; None for a padding slot."""

    def __init__(self, splits: dict[str, Dataset]) -> None:
        self.splits = splits

    def __len__(self) -> int:
        return len(next(iter(self.splits.values())))

    def __getitem__(self, slot: dict[str, int]) -> dict[str, dict[str, Any] | None]:
        return {split: None if row < 0 else {**self.splits[split][row], "index": row} for split, row in slot.items()}


class EpochLoader(DataLoader[Any]):
    """Passes the epoch to the sampler; transformers sets the epoch on the loader."""

    def set_epoch(self, epoch: int) -> None:
        self.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]
