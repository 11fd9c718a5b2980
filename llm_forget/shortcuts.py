"""Which ways around needless work a model allows: tried on the model itself with a few made-up tokens.

Architectures differ in what they do with positions, masks and logits. Whatever does not give the same log-probs as the
plain way is not used; the plain way always works.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from llm_forget.data.collate import collate
from llm_forget.logprobs import forward_logprobs
from llm_forget.models.attention import attend_by_row

LENGTHS = (12, 7, 3)
TOLERANCE = {torch.float32: 1e-3}  # nats, of a token's log-prob
LOW_PRECISION = 0.1


@dataclass(frozen=True)
class Shortcuts:
    """What `llm_forget.logprobs.forward_logprobs` may do for a model."""

    packed: bool = False  # rows end to end, without padding
    fused: bool = False  # log-probs from hidden states, by blocks of logits


def find_shortcuts(model: nn.Module, bare: Any) -> Shortcuts:
    """Try both on three short rows.

    Args:
        model: called for the forward pass; may be wrapped (DDP, FSDP, DeepSpeed). All processes call this together.
        bare: the same unwrapped: a ``PreTrainedModel``, or a ``PeftModel``.
    """
    head = bare.get_output_embeddings()
    batch = _made_up(head.weight.device, bare.config.get_text_config().vocab_size)
    was_training = bare.training
    bare.eval()
    try:
        with torch.no_grad():
            seen: list[Tensor] = []
            with _outputs_of(head, seen):
                plain = forward_logprobs(model, batch, head=head, logits=True)
            assert plain.logits is not None
            after = plain.logits[plain.mask]  # [N, V]
            untouched = torch.equal(seen[0].flatten(0, -2).float(), after.float())
            packed = attend_by_row(bare)
            if packed:
                found = forward_logprobs(model, batch, head=head, packed=True)
                error = float((found.values - plain.values).abs().max())
                packed = error < TOLERANCE.get(after.dtype, LOW_PRECISION)
            return Shortcuts(packed=packed, fused=untouched and type(head) is nn.Linear)
    finally:
        bare.train(was_training)


def _made_up(device: torch.device, vocabulary: int) -> dict[str, Tensor]:
    rows = []
    for number, length in enumerate(LENGTHS):
        ids = [(7 + 31 * number + 13 * place) % vocabulary for place in range(length)]
        rows.append({"input_ids": ids, "labels": [-100, *ids[1:]]})
    return {name: tensor.to(device) for name, tensor in collate(rows, 0).items()}


@contextmanager
def _outputs_of(module: nn.Module, into: list[Tensor]) -> Iterator[None]:
    handle = module.register_forward_hook(lambda _, __, output: into.append(output))
    try:
        yield
    finally:
        handle.remove()
