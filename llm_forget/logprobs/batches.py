"""Make a padded batch from rows of token ids."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from llm_forget.core.ignore_label import IGNORE


def collate(rows: Sequence[Mapping[str, Any] | None], pad_token_id: int) -> dict[str, Tensor]:
    """Return a batch: ``input_ids``, ``attention_mask``, ``labels`` ``[B, S]``, padded on the right; ``index`` ``[B]``.

    Rows have ``input_ids`` and ``labels``, and optionally ``index`` (position in the data set; default -1). ``None``
    gives a padding row with index -1, no targets and one attended token, because some kernels return NaN for a row
    without attended tokens. The mask is computed from row lengths, because the pad token may also occur in rows as
    end-of-turn token.
    """
    ids = [[pad_token_id] if row is None else list(row["input_ids"]) for row in rows]
    labels = [[IGNORE] if row is None else list(row["labels"]) for row in rows]
    width = max(map(len, ids), default=1)
    lengths = torch.tensor([len(row) for row in ids])  # [B]
    return {
        "input_ids": torch.tensor([row + [pad_token_id] * (width - len(row)) for row in ids]),  # [B, S]
        "attention_mask": (torch.arange(width) < lengths[:, None]).long(),  # [B, S]
        "labels": torch.tensor([row + [IGNORE] * (width - len(row)) for row in labels]),  # [B, S]
        "index": torch.tensor([-1 if row is None else int(row.get("index", -1)) for row in rows]),  # [B]
    }


def concatenate(batch: Mapping[str, Mapping[str, Tensor]], pad_token_id: int) -> dict[str, Tensor]:
    """Return all rows of all splits as one batch: ``input_ids``, ``attention_mask``, ``labels`` ``[B, S]``.

    Rows are padded on the right to the longest split.
    """
    fill = {"input_ids": pad_token_id, "attention_mask": 0, "labels": IGNORE}
    width = max(part["labels"].shape[1] for part in batch.values())
    return {
        name: torch.cat([pad(part[name], (0, width - part[name].shape[1]), value=value) for part in batch.values()])
        for name, value in fill.items()
    }
