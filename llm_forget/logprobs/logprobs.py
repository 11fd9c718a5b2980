"""Compute the log-probability of each target token under a causal language model.

As in Hugging Face models, labels are not shifted, and the label -100 is ignored. A *target* is a label other than -100
that is not the first of its row. The logits at the position before a target predict it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad

from llm_forget.core.errors import ModelError, UnsupportedError
from llm_forget.core.ignore_label import IGNORE
from llm_forget.logprobs.fused_head import head_logprobs
from llm_forget.logprobs.packing import pack


@dataclass(frozen=True)
class Logprobs:
    """Log-probs of B sequences with at most T targets. The targets of row i fill its first ``counts()[i]`` columns."""

    values: Tensor  # [B, T] log-prob of the gold token, nats, float32; 0 where mask is False
    mask: Tensor  # [B, T] bool
    labels: Tensor  # [B, T] gold token ids; 0 where mask is False
    logits: Tensor | None = None  # [B, T, V] at the position that predicts the target; None if not kept
    hidden: Tensor | None = None  # [B, T, H] at the same position; None if not kept

    def sums(self) -> Tensor:
        """Return the log-probability of each whole target sequence, ``[B]``, nats."""
        return (self.values * self.mask).sum(-1)  # [B]

    def counts(self) -> Tensor:
        """Return the number of target tokens of each sequence, ``[B]``, float."""
        return self.mask.sum(-1).to(self.values.dtype)  # [B]

    def detach(self) -> Logprobs:
        """Return the same tensors without their autograd graph."""
        tensors = {k: v.detach() for k, v in vars(self).items() if v is not None}
        return Logprobs(**tensors)


def token_logprobs(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the log-softmax of ``logits`` ``[..., V]`` at ``labels`` ``[...]``: ``[...]``, nats, float32."""
    logits = logits.float()
    chosen = logits.gather(-1, labels.unsqueeze(-1)).squeeze(-1)  # [...]
    return chosen - logits.logsumexp(-1)


def target_mask(labels: Tensor) -> Tensor:
    """Return which positions predict a target: ``[B, S - 1]`` bool from unshifted labels ``[B, S]``."""
    return labels[:, 1:] != IGNORE


def forward_logprobs(
    model: nn.Module, batch: dict[str, Tensor], *, head: nn.Module, logits: bool = False, **options: Any
) -> Logprobs:
    """Return the `Logprobs` of a batch. ``logits`` keeps its logits; ``options`` are those of `forward_parts`."""
    parts = forward_parts(model, batch, {"": len(batch["labels"])}, head=head, logits={""} if logits else (), **options)
    return parts[""]


def forward_parts(
    model: nn.Module,
    batch: dict[str, Tensor],
    sizes: Mapping[str, int],
    *,
    head: nn.Module,
    logits: Collection[str] = (),
    hidden: nn.Module | None = None,
    packed: bool = False,
    shared: bool = False,
    fused: bool = False,
) -> dict[str, Logprobs]:
    """Run one forward pass of a causal LM over a batch, with logits only at target positions, and split it into parts.

    Args:
        model: called as ``model(input_ids=..., attention_mask=...)``; may be wrapped (DDP, FSDP, DeepSpeed).
        batch: ``input_ids``, ``attention_mask``, ``labels``, each ``[B, S]``; padding on either side.
        sizes: number of rows of each part by name, in the order of the batch; their sum is B.
        head: output embeddings of the unwrapped model. Only hidden states of the N targets enter the head, so no tensor
            ``[B, S, V]`` is allocated. Operations on the logits after the head, such as soft-capping, still apply.
        logits: names of the parts whose logits ``[B, T, V]`` are returned.
        hidden: decoder layer whose output ``[B, T, H]`` is returned.
        packed: concatenate the rows without their padding on the right.
        shared: if packed, compute the common prefix of neighbouring rows only once.
        fused: for parts without returned logits, compute one block of logits at a time.

    Returns:
        The `Logprobs` of each part by name. T is the largest number of targets in a row of the part.

    `find_shortcuts` tests whether a model supports ``packed``, ``shared`` and ``fused``. Raise UnsupportedError if the
    model does not call ``head`` on the hidden states of all tokens.
    """
    where = target_mask(batch["labels"])  # [B, S-1]
    labels = batch["labels"][:, 1:][where]  # [N]
    captured: dict[str, Tensor] = {}
    inputs: dict[str, Tensor] = {k: batch[k] for k in ("input_ids", "attention_mask") if k in batch}
    if packed and (shared or not batch["attention_mask"].all()):
        inputs, place = pack(inputs, shared=shared)
        places = place[:, :-1][where]  # [N]
    else:
        places = pad(where, (0, 1)).flatten().nonzero().squeeze(-1)  # [N], in the flattened batch [B * S]
    rows = list(where.split(list(sizes.values())))
    tokens = [int(part.sum()) for part in rows]
    keeps = [name in logits for name in sizes]
    at_head = _Fused(labels, tokens, keeps, []) if fused and not all(keeps) else None
    with _select_at_head(head, places, at_head), _capture(hidden, captured):
        out = model(**inputs, use_cache=False).logits.flatten(0, -2)  # [N, V], or [N, 1] log-probs
    if out.shape[0] != labels.shape[0]:
        raise UnsupportedError(
            f"{type(head).__name__} gave {out.shape[0]} rows of logits for {labels.shape[0]} targets; "
            "this architecture does not pass its hidden states through get_output_embeddings() unchanged"
        )
    if at_head is not None:
        values, kept_logits = out.squeeze(-1).float(), at_head.part_logits  # [N]
    else:
        values = token_logprobs(out, labels)  # [N]
        kept_logits = [part if keep else None for part, keep in zip(out.split(tokens), keeps, strict=True)]
    states = captured["hidden"].flatten(0, 1)[places].split(tokens) if hidden is not None else [None] * len(rows)
    cut = zip(sizes, rows, values.split(tokens), labels.split(tokens), kept_logits, states, strict=True)
    return {name: _padded(part.sum(-1), *flat) for name, part, *flat in cut}


@dataclass(frozen=True)
class _Fused:
    """A replacement of the head's ``forward``. It returns the log-probs of the N gold tokens, and keeps some logits."""

    labels: Tensor  # [N]
    tokens: list[int]  # number of gold tokens of each part; their sum is N
    keeps: list[bool]  # for each part, whether its logits are kept
    part_logits: list[Tensor | None]  # filled by the forward pass: logits of each part, [n, V]

    def forward_of(self, head: Any) -> Callable[[Tensor], Tensor]:
        def forward(states: Tensor) -> Tensor:  # [1, N, H]
            values = []
            parts = zip(states[0].split(self.tokens), self.labels.split(self.tokens), self.keeps, strict=True)
            for part, gold, keep in parts:
                if keep:
                    logits = linear(part, head.weight, head.bias)  # [n, V]
                    self.part_logits.append(logits)
                    values.append(token_logprobs(logits, gold))
                else:
                    self.part_logits.append(None)
                    values.append(head_logprobs(part, head.weight, head.bias, gold))
            return torch.cat(values)[None, :, None]  # [1, N, 1]

        return forward


def _padded(counts: Tensor, values: Tensor, labels: Tensor, logits: Tensor | None, hidden: Tensor | None) -> Logprobs:
    """Return `Logprobs` of B rows from flat tensors ``[N, ...]`` of all targets; row i has ``counts[i]`` of them."""
    mask = torch.arange(int(counts.max()), device=counts.device) < counts[:, None]  # [B, T]
    return Logprobs(
        values=_unflatten(values, mask),
        mask=mask,
        labels=_unflatten(labels, mask),
        logits=_unflatten(logits, mask) if logits is not None else None,
        hidden=_unflatten(hidden, mask) if hidden is not None else None,
    )


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Turn dropout off within a ``with`` block, and restore the mode of each module afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def decoder_layers(model: nn.Module, count: int) -> nn.ModuleList:
    """Return the decoder layers: the model's first module list of length ``count``. Raise ModelError if it has none."""
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise ModelError(f"{type(model).__name__} has no list of {count} decoder layers")


def _unflatten(flat: Tensor, mask: Tensor) -> Tensor:
    """Return ``[B, T, ...]`` with ``flat`` ``[N, ...]`` where ``mask`` ``[B, T]`` is True, and zeros elsewhere."""
    places = mask.flatten().nonzero().squeeze(-1)  # [N]
    empty = flat.new_zeros((mask.numel(), *flat.shape[1:]))
    return empty.index_copy(0, places, flat).unflatten(0, mask.shape)


@contextmanager
def _select_at_head(head: nn.Module, places: Tensor, fused: _Fused | None) -> Iterator[None]:
    """Reduce the head's input to the positions ``places`` ``[N]`` within a ``with`` block.

    If ``fused`` is set, the head returns log-probs in place of logits.
    """

    def select(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (args[0].flatten(0, 1)[places][None], *args[1:])  # [1, N, H]

    handle = head.register_forward_pre_hook(select)
    if fused is not None:
        # Replace the forward itself: sharded weights are gathered only during the module's call.
        head.forward = fused.forward_of(head)
    try:
        yield
    finally:
        handle.remove()
        if fused is not None:
            del head.forward


@contextmanager
def _capture(layer: nn.Module | None, into: dict[str, Tensor]) -> Iterator[None]:
    if layer is None:
        yield
        return

    def keep(_: nn.Module, __: Any, output: Any) -> None:
        into["hidden"] = output[0] if isinstance(output, tuple) else output  # [B, S, H]

    handle = layer.register_forward_hook(keep)
    try:
        yield
    finally:
        handle.remove()
