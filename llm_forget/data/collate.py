"""Rows of token ids into a padded batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from llm_forget.logprobs import IGNORE

Slot = Mapping[str, int]


def collate(
    rows: Sequence[Mapping[str, Any] | None], pad_token_id: int, *, pad_to_multiple_of: int = 1
) -> dict[str, Tensor]:
    """Right-padded ``input_ids``, ``attention_mask``, ``labels`` ``[B, S]`` and ``index`` ``[B]``.

    What is attended to is decided by lengths, never by the pad id: a model whose pad and end-of-turn token are the same
    must still see the end of a turn. ``None`` is a padding row: one token, attended to (a row that attends to nothing is
    NaN in some kernels), no target, index -1.

    Args:
        rows: with ``input_ids`` and ``labels``, and ``index`` (place in the data set) where the caller wants it back.
        pad_token_id: fills the end of short rows.
        pad_to_multiple_of: round S up to this.
    """
    ids = [[pad_token_id] if row is None else list(row["input_ids"]) for row in rows]
    labels = [[IGNORE] if row is None else list(row["labels"]) for row in rows]
    width = -(-max(map(len, ids), default=1) // pad_to_multiple_of) * pad_to_multiple_of
    lengths = torch.tensor([len(row) for row in ids])  # [B]
    return {
        "input_ids": torch.tensor([row + [pad_token_id] * (width - len(row)) for row in ids]),  # [B, S]
        "attention_mask": (torch.arange(width) < lengths[:, None]).long(),  # [B, S]
        "labels": torch.tensor([row + [IGNORE] * (width - len(row)) for row in labels]),  # [B, S]
        "index": torch.tensor([-1 if row is None else int(row.get("index", -1)) for row in rows]),  # [B]
    }


class SplitRows(TorchDataset[dict[str, Any]]):
    """Rows of several splits by slot: ``{"forget": 3, "retain": 17}`` gives one row (or None for -1) of each.

    Args:
        splits: tokenised rows by split name.
        follows: splits whose row is the one of another split, ``{"alternate": "forget"}``.
    """

    def __init__(self, splits: Mapping[str, Any], follows: Mapping[str, str] | None = None) -> None:
        self._splits = dict(splits)
        self._follows = dict(follows or {})
        for name, leader in self._follows.items():
            if len(self._splits[name]) != len(self._splits[leader]):
                raise ValueError(
                    f"{name} has {len(self._splits[name])} rows and {leader}, which it follows, "
                    f"{len(self._splits[leader])}; allowed: as many"
                )

    def __len__(self) -> int:
        return max(len(rows) for rows in self._splits.values())

    def __getitem__(self, slot: Slot) -> dict[str, Any]:
        full = {**slot, **{name: slot[leader] for name, leader in self._follows.items()}}
        return {name: self._row(name, place) for name, place in full.items()}

    def _row(self, split: str, place: int) -> dict[str, Any] | None:
        if place < 0:
            return None
        row = self._splits[split][int(place)]
        return {"input_ids": row["input_ids"], "labels": row["labels"], "index": int(place)}


class SplitCollator:
    """Slots of `SplitRows` into one padded batch per split."""

    def __init__(self, pad_token_id: int, pad_to_multiple_of: int = 1) -> None:
        self.pad_token_id = pad_token_id
        self.pad_to_multiple_of = pad_to_multiple_of

    def __call__(self, slots: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Tensor]]:
        return {
            name: collate([s[name] for s in slots], self.pad_token_id, pad_to_multiple_of=self.pad_to_multiple_of)
            for name in slots[0]
        }
