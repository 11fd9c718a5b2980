"""Teacher-forced forward pass of a batch, with shared prefixes computed once.

Many tokens of a set of answers are repeated prefixes (see `llm_forget.logprobs.packing`): more than half of the tokens
of the perturbed TOFU answers under a template with a system prompt.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from llm_forget.logprobs.fast_paths import Shortcuts, find_shortcuts
from llm_forget.logprobs.logprobs import Logprobs, forward_logprobs

# Logits per block: a block that fits the CPU cache is five times as fast as 50 rows of 50 000 at once.
BLOCK_ON_CPU, BLOCK_ON_GPU = 2**18, 2**26
Forward = Callable[[dict[str, Tensor]], Logprobs]


def forward_with_logits(model: Any, *, plain: bool = False) -> tuple[Forward, bool]:
    """The cheapest pass that a model in evaluation mode supports; the flag tells whether it shares prefixes.

    The pass maps a right-padded batch to the log-probs and logits at its targets. ``plain`` chooses the padded one,
    which every model supports, without a trial.
    """
    head = model.get_output_embeddings()
    shortcuts = vars(Shortcuts() if plain else find_shortcuts(model, model))
    return lambda batch: forward_logprobs(model, batch, head=head, logits=True, **shortcuts), shortcuts["shared"]


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
    values = torch.cat([logps.values[logps.mask].float()[None], over_vocabulary]).cpu()  # [4, N]
    hits = values[1].bool()
    counts = logps.mask.sum(-1).tolist()
    columns = (values[0], hits, values[2], values[3])
    return list(zip(*(column.split(counts) for column in columns), strict=True))


def vocabulary_moments(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of log p(v) over v drawn from p, ``[n]`` each, of ``[n, V]`` logits: Min-K %++ needs them."""
    logps = logits.float().log_softmax(-1).clamp_min_(-1e4)  # [n, V]; clamped so that a masked token gives no 0 * inf
    weights = logps.exp()  # [n, V]
    mean = torch.linalg.vecdot(weights, logps)  # [n]
    # E[x^2] - E[x]^2 would cancel, even below zero, if the model is certain.
    return mean, torch.linalg.vecdot(weights, logps.sub_(mean[:, None]).square_())  # [n]
