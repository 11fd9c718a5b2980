"""Find the fast paths with which a model gives the same log-probs as without them, by a test on synthetic rows."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from llm_forget.logprobs.batches import collate
from llm_forget.logprobs.logprobs import forward_logprobs
from llm_forget.logprobs.packed_attention import attend_by_row, shares_beginnings

# Rows of different lengths: neighbours share a prefix, one is a prefix of another, the last shares nothing.
ROWS = ((3, 9, 4, 11, 6, 2, 8, 10, 1, 7, 5, 12), (3, 9, 4, 11, 7, 1, 2), (3, 9, 4), (5, 9, 4, 10, 12, 3))
TOLERANCE = {torch.float32: 1e-3}  # nats, of a token's log-prob
LOW_PRECISION = 0.1


@dataclass(frozen=True)
class Shortcuts:
    """The fast paths of `llm_forget.logprobs.logprobs.forward_logprobs` that a model supports."""

    packed: bool = False  # concatenate rows without padding
    shared: bool = False  # compute the common prefix of neighbouring rows once
    fused: bool = False  # compute log-probs from hidden states, one block of logits at a time


def find_shortcuts(model: nn.Module, bare: Any) -> Shortcuts:
    """Try each fast path on a few short rows, and return those that give the log-probs of the plain forward pass.

    ``bare`` is ``model`` without its wrapper (DDP, FSDP, DeepSpeed). If the model is wrapped, all processes must call
    this function. If packed rows are supported, the attention of the model stays replaced (`attend_by_row`).
    """
    head = bare.get_output_embeddings()
    batch = _sample_batch(head.weight.device, bare.config.get_text_config().vocab_size)
    was_training = bare.training
    bare.eval()
    try:
        with torch.no_grad():
            head_outputs: list[Tensor] = []
            with _outputs_of(head, head_outputs):
                plain = forward_logprobs(model, batch, head=head, logits=True)
            assert plain.logits is not None
            after = plain.logits[plain.mask]  # [N, V]
            untouched = torch.equal(head_outputs[0].flatten(0, -2).float(), after.float())
            tolerance = TOLERANCE.get(after.dtype, LOW_PRECISION)

            def same(**shortcuts: Any) -> bool:
                try:
                    result = forward_logprobs(model, batch, head=head, **shortcuts)
                except (RuntimeError, ValueError, IndexError, TypeError):
                    return False  # this architecture does not support the fast path
                return float((result.values - plain.values).abs().max()) < tolerance

            packed = attend_by_row(bare) and same(packed=True)
            shared = packed and shares_beginnings(bare) and same(packed=True, shared=True)
            replaceable = type(head) is nn.Linear and "forward" not in vars(head)  # not replaced, e.g. by a device map
            return Shortcuts(packed=packed, shared=shared, fused=untouched and replaceable)
    finally:
        bare.train(was_training)


def _sample_batch(device: torch.device, vocabulary: int) -> dict[str, Tensor]:
    ids = [[token % vocabulary for token in row] for row in ROWS]
    rows = [{"input_ids": row, "labels": [-100, *row[1:]]} for row in ids]
    return {name: tensor.to(device) for name, tensor in collate(rows, 0).items()}


@contextmanager
def _outputs_of(module: nn.Module, into: list[Tensor]) -> Iterator[None]:
    handle = module.register_forward_hook(lambda _, __, output: into.append(output))
    try:
        yield
    finally:
        handle.remove()
