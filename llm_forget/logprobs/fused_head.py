"""Compute log-probs of gold tokens from hidden states, one block of logits at a time, to limit peak memory.

The gradient of a token's log-prob with respect to its hidden state h is ``W[label] - softmax(W h) W``; W is the weight
of the head. This gradient does not depend on the loss. So if the head is frozen (LoRA), the forward pass computes the
gradient, and logits are neither stored nor recomputed. Liger Kernel (arXiv:2410.10989) and Cut Cross-Entropy
(arXiv:2411.09009) also use blocks of logits.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

# Elements of one block of logits, float32.
BLOCK_ON_CPU, BLOCK_ON_GPU = 2**23, 2**26


def head_logprobs(hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor) -> Tensor:
    """Return the log-softmax of ``hidden @ weight.T + bias`` at ``labels``: ``[N]``, nats, float32.

    Shapes: ``hidden`` ``[N, H]``, ``weight`` ``[V, H]``, ``bias`` ``[V]``, ``labels`` ``[N]``. Values and gradients
    equal those of `token_logprobs` on the logits. Gradients reach ``hidden``. They also reach ``weight`` and ``bias``
    if these require gradients; in this case the backward pass recomputes the logits.
    """
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
        # Cast once instead of once per block.
        hidden, weight, bias = hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    budget = BLOCK_ON_CPU if hidden.device.type == "cpu" else BLOCK_ON_GPU
    block = max(1, budget // weight.shape[0])
    return _HeadLogprobs.apply(hidden, weight, bias, labels, block)  # type: ignore[no-untyped-call]  # torch has no types


class _HeadLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, block: int) -> Tensor:
        values = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)  # [N]
        normalisers = torch.empty_like(values)
        trained = any(ctx.needs_input_grad[1:3])
        # In float16 the slopes of nearly certain tokens underflow before the loss scale is applied.
        dtype = torch.float32 if hidden.dtype == torch.float16 else hidden.dtype
        needs_slopes = ctx.needs_input_grad[0] and not trained
        slopes = torch.empty_like(hidden, dtype=dtype) if needs_slopes else None  # [N, H]
        for part in _blocks(len(hidden), block):
            logits = linear(hidden[part], weight, bias).float()  # [n, V]
            chosen = logits.gather(-1, labels[part, None])  # [n, 1]
            highest = logits.amax(-1, keepdim=True)
            exponentials = logits.sub_(highest).exp_()
            total = exponentials.sum(-1, keepdim=True)
            normalisers[part] = (highest + total.log()).squeeze(-1)
            values[part] = chosen.squeeze(-1) - normalisers[part]
            if slopes is not None:
                slopes[part] = _slopes(_residual(exponentials.div_(total), labels[part]), weight)
            del logits, exponentials  # before the next block is made
        ctx.block, ctx.trained, ctx.dtype = block, trained, hidden.dtype
        saved = (hidden, weight, bias, labels, normalisers) if trained else (slopes,)
        ctx.save_for_backward(*saved)
        return values

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        slope = gradients[0][:, None]  # [N, 1] d loss / d value
        if not ctx.trained:
            (slopes,) = ctx.saved_tensors
            return (slopes * slope).to(ctx.dtype), None, None, None, None
        hidden, weight, bias, labels, normalisers = ctx.saved_tensors
        # Sum over blocks in float32: in half precision every block would add a rounding error.
        of_hidden = torch.empty_like(hidden)
        of_weight = torch.zeros_like(weight, dtype=torch.float32)
        of_bias = None if bias is None else torch.zeros_like(bias, dtype=torch.float32)
        for part in _blocks(len(hidden), ctx.block):
            logits = linear(hidden[part], weight, bias).float()  # [n, V]
            residual = _residual(logits.sub_(normalisers[part, None]).exp_(), labels[part]).mul_(slope[part])
            if of_bias is not None:
                of_bias += residual.sum(0)
            residual = residual.to(weight.dtype)
            of_hidden[part] = residual @ weight
            of_weight += residual.T @ hidden[part]
            del logits, residual
        return of_hidden, of_weight.to(weight.dtype), None if of_bias is None else of_bias.to(weight.dtype), None, None


def _residual(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Overwrite float32 ``probabilities`` ``[n, V]`` with ``onehot(labels) - probabilities``, and return the tensor."""
    ones = torch.ones_like(labels[:, None], dtype=probabilities.dtype)
    return probabilities.neg_().scatter_add_(-1, labels[:, None], ones)


def _slopes(residual: Tensor, weight: Tensor) -> Tensor:
    """Return ``residual @ weight``, ``[n, H]``. For float16, scale rows against underflow and return float32."""
    if weight.dtype != torch.float16:
        return residual.to(weight.dtype) @ weight
    largest = torch.maximum(residual.amax(-1, keepdim=True), -residual.amin(-1, keepdim=True)).clamp(min=1e-30)
    return (residual / largest).to(weight.dtype) @ weight * largest


def _blocks(length: int, block: int) -> list[slice]:
    return [slice(start, start + block) for start in range(0, length, block)]
