"""A teacher-forced pass over a batch: what it gives of every target token, and how to compute no more than needed.

What a causal model makes of a token depends on what stands before it alone. The answers to one question share the
question, and all rows of a chat template its beginning, so most tokens of a set of answers are repetitions: of the
perturbed answers of TOFU under a template with a system prompt, more than half. They go through the model once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from llm_forget.data.collate import collate
from llm_forget.logprobs import Logprobs, forward_logprobs
from llm_forget.models.attention import FLASH, PREFIX, attend_by_row
from llm_forget.packing import layout
from llm_forget.shortcuts import LOW_PRECISION, TOLERANCE, find_shortcuts

# Logits looked at in one go: what stays in a CPU's cache is five times as fast as 50 rows of 50 000 at once.
BLOCK_ON_CPU, BLOCK_ON_GPU = 2**18, 2**26
Forward = Callable[[dict[str, Tensor]], Logprobs]
# First rows alike, last rows not; lengths differ, one row is the beginning of another.
ROWS = ((3, 9, 4, 11, 6, 2, 8), (3, 9, 4, 11, 7), (3, 9, 4), (5, 9, 4, 10, 12, 3))


def forward_with_logits(model: nn.Module, *, plain: bool = False) -> tuple[Forward, bool]:
    """The way with the least computing that a model is seen to allow, and whether in it rows share their beginnings.

    Args:
        model: a ``PreTrainedModel`` or ``PeftModel``, in evaluation mode.
        plain: take the padded way, which always works, without a trial.

    Returns:
        A function of a right-padded batch that gives log-probs and logits at its targets.
    """
    head = model.get_output_embeddings()
    if plain:
        return lambda batch: forward_logprobs(model, batch, head=head, logits=True), False
    if shares_prefixes(model):
        return lambda batch: forward_shared(model, batch, head=head), True
    packed = find_shortcuts(model, model).packed
    return lambda batch: forward_logprobs(model, batch, head=head, logits=True, packed=packed), False


def shares_prefixes(model: Any) -> bool:
    """Whether `forward_shared` gives a model's own log-probs: tried on a few made-up tokens.

    It does not where a layer other than attention looks at neighbours, or attention is not told which rows a token
    belongs to (FlashAttention's kernels take each token once).
    """
    head = model.get_output_embeddings()
    if str(model.config._attn_implementation).removeprefix(PREFIX) in FLASH or not attend_by_row(model):
        return False
    vocabulary = head.weight.shape[0]
    rows = [{"input_ids": [i % vocabulary for i in row], "labels": [i % vocabulary for i in row]} for row in ROWS]
    batch = {name: part.to(head.weight.device) for name, part in collate(rows, 0).items()}
    with torch.no_grad():
        plain = forward_logprobs(model, batch, head=head, logits=True)
        shared = forward_shared(model, batch, head=head)
    assert plain.logits is not None
    tolerance = TOLERANCE.get(plain.logits.dtype, LOW_PRECISION)
    return float((shared.values - plain.values).abs().max()) < tolerance


def forward_shared(model: Any, batch: dict[str, Tensor], *, head: nn.Module) -> Logprobs:
    """What `forward_logprobs` gives with logits, with neighbouring rows' common beginnings passed over once.

    Args:
        model: one for which `shares_prefixes`.
        batch: ``input_ids``, ``attention_mask``, ``labels`` ``[B, S]``, padded on the right; the more neighbours have
            in common, the less is computed.
        head: the model's output embeddings.
    """
    inputs, place = pack_shared(batch)

    def as_padded(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (args[0][0][place.to(args[0].device)], *args[1:])  # [B, S, H]

    # Before the hook that takes the target positions, which looks for them in the padded batch.
    handle = head.register_forward_pre_hook(as_padded)
    try:
        return forward_logprobs(lambda **_: model(**inputs, use_cache=False), batch, head=head, logits=True)  # type: ignore[arg-type]
    finally:
        handle.remove()


def pack_shared(batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
    """As `llm_forget.packing.pack`, but what a row and the one above it begin with stands there once.

    Returns:
        ``input_ids`` and ``position_ids`` ``[1, N]`` and the layout as ``attention_mask`` ``[2, 1, B, S]``; and the
        place of each token of the batch in the packed row, ``[B, S]``, 0 for padding.
    """
    ids, attended = batch["input_ids"], batch["attention_mask"].bool()  # [B, S]
    alike = (ids[1:] == ids[:-1]) & attended[1:] & attended[:-1]  # [B - 1, S]
    above = nn.functional.pad(alike.long().cumprod(-1), (0, 0, 1, 0)).bool()  # [B, S]: the row so far is that above
    own = attended & ~above  # [B, S]
    slots = own.flatten().nonzero().squeeze(-1)  # [N]
    numbers = (own.flatten().cumsum(0) - 1).view_as(own)  # [B, S]
    # Numbers grow from row to row, so the largest so far in a column is that of the row which the token came from.
    place = numbers.masked_fill(~own, 0).cummax(0).values.masked_fill(~attended, 0)  # [B, S]
    positions = (attended.cumsum(-1) - 1).flatten()[slots]  # [N]
    inputs = {
        "input_ids": ids.flatten()[slots][None],
        "position_ids": positions[None],
        "attention_mask": layout(place, attended, slots),
    }
    return inputs, place


def per_row(logps: Logprobs) -> list[tuple[Tensor, ...]]:
    """Log-probs, hits, means and variances over the vocabulary of each row's targets, ``[n]`` each, on the CPU."""
    assert logps.logits is not None
    logits, labels = logps.logits.flatten(0, 1), logps.labels.flatten()  # [B * T, V], [B * T]
    size = max(1, (BLOCK_ON_CPU if logits.device.type == "cpu" else BLOCK_ON_GPU) // logits.shape[-1])
    parts = []
    for places in logps.mask.flatten().nonzero().squeeze(-1).split(size):
        block = logits[places]  # [size, V]
        parts.append(torch.stack([block.argmax(-1) == labels[places], *vocabulary_moments(block)]))  # [3, size]
    over_vocabulary = torch.cat(parts, -1) if parts else logps.values.new_zeros(3, 0)
    found = torch.cat([logps.values[logps.mask].float()[None], over_vocabulary]).cpu()  # [4, N]
    hits = found[1].bool()
    counts = logps.mask.sum(-1).tolist()
    columns = (found[0], hits, found[2], found[3])
    return list(zip(*(column.split(counts) for column in columns), strict=True))


def vocabulary_moments(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of log p(v) over v drawn from p, ``[n]`` each, of ``[n, V]`` logits: Min-K %++ needs them."""
    logps = logits.float().log_softmax(-1).clamp_min_(-1e4)  # [n, V], and no 0 * inf for a token that is masked out
    weights = logps.exp()  # [n, V]
    mean = torch.linalg.vecdot(weights, logps)  # [n]
    # Not the mean of squares minus the squared mean: that cancels, down to below zero, where the model is certain.
    return mean, torch.linalg.vecdot(weights, logps.sub_(mean[:, None]).square_())  # [n]
