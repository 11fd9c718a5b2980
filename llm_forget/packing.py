"""Rows of a padded batch laid end to end, so that no layer computes on padding.

Attention is the one layer that looks across tokens: it is told which token belongs where by an integer mask, which
`llm_forget.models.attention` understands. Every other layer sees one long row.
"""

from __future__ import annotations

import torch
from torch import Tensor


def pack(batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
    """What to give the model, and where each token went.

    Args:
        batch: ``input_ids`` and ``attention_mask`` ``[B, S]``, padded on the right.

    Returns:
        ``input_ids`` and ``position_ids`` ``[1, N]`` and the layout as ``attention_mask`` ``[2, 1, B, S]`` (see
        `layout`), for the N tokens that are attended to; and the place of each of them in the packed row, ``[B, S]``.
    """
    attended = batch["attention_mask"].bool()  # [B, S]
    flat = attended.flatten()
    place = (flat.cumsum(0) - 1).view_as(attended)  # [B, S]
    slots = flat.nonzero().squeeze(-1)  # [N]
    positions = (attended.cumsum(-1) - 1).flatten()[slots]  # [N]
    inputs = {
        "input_ids": batch["input_ids"].flatten()[slots][None],
        "position_ids": positions[None],
        "attention_mask": layout(place, attended, slots),
    }
    return inputs, place


def layout(place: Tensor, attended: Tensor, slots: Tensor) -> Tensor:
    """Both directions in one integer tensor, ``[2, 1, B, S]``: four dimensions, so that transformers passes it on.

    The first half holds the packed place of each slot of the padded batch, -1 for padding; the second half, flattened,
    begins with the padded slot of each packed token.
    """
    back = torch.zeros_like(place).flatten()
    back[: len(slots)] = slots
    return torch.stack([place.masked_fill(~attended, -1), back.view_as(place)])[:, None]


def is_layout(mask: Tensor | None) -> bool:
    """Whether an attention mask is a `layout`; all others are boolean or floating point."""
    return mask is not None and mask.dim() == 4 and mask.dtype == torch.int64


def unpacked(packed: Tensor, mask: Tensor) -> Tensor:
    """``[1, heads, N, D]`` as ``[B, heads, S, D]``; padding repeats the first token, which no real token looks at."""
    rows = packed[0].transpose(0, 1)  # [N, heads, D]
    places = mask[0, 0].clamp(min=0)  # [B, S]
    return rows.index_select(0, places.flatten()).unflatten(0, places.shape).transpose(1, 2)


def packed_again(padded: Tensor, mask: Tensor, count: int) -> Tensor:
    """``[B, S, heads, D]``, as attention returns it, as ``[1, N, heads, D]``."""
    slots = mask[1, 0].flatten()[:count]  # [N]
    return padded.flatten(0, 1).index_select(0, slots)[None]
