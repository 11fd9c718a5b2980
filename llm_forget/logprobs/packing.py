"""Pack the rows of a padded batch into one long row, and store prefixes that neighbouring rows share only once.

In a causal model, the hidden state of a token depends only on this token and those before it, so rows with the same
prefix can share its hidden states. Only attention mixes tokens. An integer mask (`layout`) tells `packed_attention` to
which row each token belongs. Every other layer processes one long row.
"""

import torch
from torch import Tensor, nn


def pack(batch: dict[str, Tensor], *, shared: bool) -> tuple[dict[str, Tensor], Tensor]:
    """Pack ``input_ids`` and ``attention_mask`` ``[B, S]``, padded on the right, into one row of N tokens.

    Return (model inputs, place). The model inputs are ``input_ids`` and ``position_ids`` ``[1, N]``, and a `layout`
    ``[2, 1, B, S]`` as ``attention_mask``. ``place`` ``[B, S]`` is the position of each token of the batch in the
    packed row, 0 for padding. With ``shared``, the common prefix of a row and the row above it is stored once.
    """
    ids, attended = batch["input_ids"], batch["attention_mask"].bool()  # [B, S]
    is_packed = attended  # [B, S]: tokens that are stored, not shared with the row above
    if shared:
        equals_above = (ids[1:] == ids[:-1]) & attended[1:] & attended[:-1]  # [B - 1, S]
        is_packed = attended & ~nn.functional.pad(equals_above.long().cumprod(-1), (0, 0, 1, 0)).bool()
    slots = is_packed.flatten().nonzero().squeeze(-1)  # [N]
    numbers = (is_packed.flatten().cumsum(0) - 1).view_as(is_packed)  # [B, S]
    # Numbers increase from row to row, so the running maximum of a column is the stored token that a row shares.
    place = numbers.masked_fill(~is_packed, 0).cummax(0).values.masked_fill(~attended, 0)  # [B, S]
    positions = (attended.cumsum(-1) - 1).flatten()[slots]  # [N]
    inputs = {
        "input_ids": ids.flatten()[slots][None],
        "position_ids": positions[None],
        "attention_mask": layout(place, attended, slots),
    }
    return inputs, place


def layout(place: Tensor, attended: Tensor, slots: Tensor) -> Tensor:
    """Return the mapping between a padded batch and its packed row as one integer tensor ``[2, 1, B, S]``.

    The first half holds the packed position of each token of the padded batch, -1 for padding. The first N elements of
    the flattened second half hold the position in the flattened batch of each packed token (``slots``). The tensor is
    4-D, because transformers passes 4-D masks to the attention unchanged.
    """
    back = torch.zeros_like(place).flatten()
    back[: len(slots)] = slots
    return torch.stack([place.masked_fill(~attended, -1), back.view_as(place)])[:, None]


def is_layout(mask: Tensor | None) -> bool:
    """Return whether an attention mask is a `layout`. Other 4-D masks are boolean or floating point."""
    return mask is not None and mask.dim() == 4 and mask.dtype == torch.int64


def unpacked(packed: Tensor, mask: Tensor) -> Tensor:
    """Unpack ``[1, heads, N, D]`` into ``[B, heads, S, D]``. Padding has the values of token 0 and is not attended."""
    rows = packed[0].transpose(0, 1)  # [N, heads, D]
    places = mask[0, 0].clamp(min=0)  # [B, S]
    return rows.index_select(0, places.flatten()).unflatten(0, places.shape).transpose(1, 2)


def repacked(padded: Tensor, mask: Tensor, count: int) -> Tensor:
    """Pack an output of attention ``[B, S, heads, D]`` into ``[1, N, heads, D]``; ``count`` is N."""
    slots = mask[1, 0].flatten()[:count]  # [N]
    return padded.flatten(0, 1).index_select(0, slots)[None]
