"""Compute the floating-point operations of a step by formula, and measure the FLOP/s of matrix products here."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from llm_forget.bench.interleaved_timing import seconds_of, spread
from llm_forget.logprobs.logprobs import target_mask
from llm_forget.objectives.methods import Objective


@dataclass(frozen=True)
class Sizes:
    """Sizes of a dense model. Only weights of matrix products count: no embeddings, norms or biases."""

    body: int  # weights of all linear layers except the head, which process every token
    head: int  # weights of the output head, hidden x vocabulary, which processes every target
    adapter: int  # trained weights of the adapter
    layers: int
    hidden: int
    vocabulary: int


def sizes_of(model: Any, adapter: int = 0) -> Sizes:
    """Return the sizes of a model to which no adapter is attached yet. Quantised weights have their original shape."""
    from transformers.pytorch_utils import Conv1D

    head, config = model.get_output_embeddings(), model.config.get_text_config()
    linear = [m for m in model.modules() if isinstance(m, nn.Linear | Conv1D) and m is not head]
    body = sum(m.in_features * m.out_features if isinstance(m, nn.Linear) else m.weight.numel() for m in linear)
    hidden, vocabulary = config.hidden_size, config.vocab_size
    return Sizes(body, hidden * vocabulary, adapter, config.num_hidden_layers, hidden, vocabulary)


def token_counts(batch: Mapping[str, Mapping[str, Tensor]]) -> dict[str, dict[str, Any]]:
    """Return, by split, the ``lengths`` of the rows, and the numbers of ``tokens`` (no padding) and ``targets``."""
    return {
        split: {
            "lengths": part["attention_mask"].sum(-1).tolist(),
            "tokens": int(part["attention_mask"].sum()),
            "targets": int(target_mask(part["labels"]).sum()),
        }
        for split, part in batch.items()
    }


def useful_flops(sizes: Sizes, counts: Mapping[str, Mapping[str, Any]], objective: Objective | None = None) -> float:
    """Return the minimum number of floating-point operations of a LoRA step.

    For each token, a weight takes 2 FLOP in the forward pass, 2 in the backward pass, and 2 more if it is trained::

        policy     4 * body * tokens + 4 * head * targets + 6 * adapter * tokens
        reference  2 * body * tokens + 2 * head * targets, for splits on which the reference must run in the step

    Avoidable work is not counted: padding, prompt positions in the head, a second pass over the same rows, and
    recomputed activations. Attention scores are not counted either, because they are small for rows of a few hundred
    tokens. If an objective reads only the hidden states of one layer (rmu), the head and all later layers are not
    counted.
    """
    share, reads_head = 1.0, True
    reference: tuple[str, ...] = ()
    if objective is not None:
        reference = objective.reference_pass_sources()
        if all(term.needs == {"hidden_states"} for term in objective.terms):
            layer = objective.layer_index(sizes.layers)
            assert layer is not None
            share, reads_head = (layer + 1) / sizes.layers, False
    total = 0.0
    for split, count in counts.items():
        passes = 4 + (2 if split in reference else 0)
        total += share * (passes * sizes.body + 6 * sizes.adapter) * count["tokens"]
        total += passes * sizes.head * count["targets"] if reads_head else 0.0
    return total


def matrix_ceiling(tokens: int, hidden: int, dtype: torch.dtype, device: torch.device) -> list[dict[str, Any]]:
    """Measure the FLOP/s of three matrix products with the shapes of a layer. Each is repeated for about 0.05 s. Return
    one dictionary per product, with its ``shape`` and ``flop_per_second``.
    """
    products = []
    for inner, outer in ((hidden, hidden), (hidden, 4 * hidden), (4 * hidden, hidden)):
        left = torch.randn(tokens, inner, device=device).to(dtype)
        right = torch.randn(inner, outer, device=device).to(dtype)

        def work(count: int, left: Tensor = left, right: Tensor = right) -> None:
            for _ in range(count):
                left @ right

        once = max(seconds_of(lambda: work(2), device) / 2, 1e-9)
        count = max(1, min(1000, int(0.05 / once)))
        seconds = seconds_of(lambda: work(count), device)  # noqa: B023
        flop_per_second = 2 * tokens * inner * outer * count / seconds
        products.append({"shape": [tokens, inner, outer], "flop_per_second": flop_per_second})
    return products


def ceiling_of(measured: list[list[dict[str, Any]]]) -> dict[str, Any]:
    """Summarise the results of `matrix_ceiling` of several rounds: ``shapes``, and the spread of all FLOP/s."""
    rates = [product["flop_per_second"] for products in measured for product in products]
    return {"shapes": [product["shape"] for product in measured[0]], "flop_per_second": spread(rates)}
