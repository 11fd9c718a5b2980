"""The teacher-forced forward pass of a batch. It computes shared prefixes once (see `llm_forget.logprobs.packing`)."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from llm_forget.logprobs.fast_paths import Shortcuts, find_shortcuts
from llm_forget.logprobs.logprobs import Logprobs, forward_logprobs
from llm_forget.logprobs.top_tokens import rest_logprob, top_tokens

# Number of logits in a block: blocks that fit the CPU cache are five times as fast as 50 rows of 50 000 at once.
BLOCK_ON_CPU, BLOCK_ON_GPU = 2**18, 2**26
Forward = Callable[[dict[str, Tensor]], Logprobs]


def forward_with_logits(model: Any, *, plain: bool = False) -> tuple[Forward, bool]:
    """Return the cheapest forward pass that the model supports in evaluation mode, and whether it shares prefixes.

    The pass takes a right-padded batch, and returns the log-probs and logits at the targets of the batch. With
    ``plain``, it is the padded pass, which every model supports.
    """
    head = model.get_output_embeddings()
    shortcuts = vars(Shortcuts() if plain else find_shortcuts(model, model))
    return lambda batch: forward_logprobs(model, batch, head=head, logits=True, **shortcuts), shortcuts["shared"]


def per_row(logps: Logprobs, top: int | None = None) -> list[tuple[Tensor, ...]]:
    """Return for each row a tuple of CPU tensors ``[n]``: log-probs, hits, means and variances (see `TokenRecord`).

    With ``top``, the tuple continues with the most likely tokens, their log-probs, each ``[n, K]``, and the log-prob of
    all other tokens together, ``[n]``.
    """
    assert logps.logits is not None
    logits, labels = logps.logits.flatten(0, 1), logps.labels.flatten()  # [B * T, V], [B * T]
    size = max(1, (BLOCK_ON_CPU if logits.device.type == "cpu" else BLOCK_ON_GPU) // logits.shape[-1])
    parts, shortened = [], []
    for places in logps.mask.flatten().nonzero().squeeze(-1).split(size):
        block = logits[places]  # [size, V]
        parts.append(torch.stack([block.argmax(-1) == labels[places], *vocabulary_moments(block)]))  # [3, size]
        if top is not None:
            shortened.append(_shortened(block, labels[places], top))
    over_vocabulary = torch.cat(parts, -1) if parts else logps.values.new_zeros(3, 0)
    values = torch.cat([logps.values[logps.mask].float()[None], over_vocabulary]).cpu()  # [4, N]
    hits = values[1].bool()
    counts = logps.mask.sum(-1).tolist()
    columns = [values[0], hits, values[2], values[3]]
    if top is not None:
        shortened = shortened or [_shortened(logits[:0], labels[:0], top)]
        columns += [torch.cat(part).cpu() for part in zip(*shortened, strict=True)]
    return list(zip(*(column.split(counts) for column in columns), strict=True))


def _shortened(logits: Tensor, labels: Tensor, top: int) -> tuple[Tensor, Tensor, Tensor]:
    logprobs = logits.float().log_softmax(-1)  # [n, V]
    tokens, stored = top_tokens(logprobs, labels, top)
    return tokens.int(), stored, rest_logprob(logprobs, tokens)


def vocabulary_moments(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and variance, each ``[n]``, of log p(v) for v drawn from p, from logits ``[n, V]``; for Min-K %++."""
    logps = logits.float().log_softmax(-1).clamp_min_(-1e4)  # [n, V]; clamped: a masked token would give 0 * inf
    weights = logps.exp()  # [n, V]
    mean = torch.linalg.vecdot(weights, logps)  # [n]
    # E[x^2] - E[x]^2 would lose all digits, and could be negative, if the model is certain.
    return mean, torch.linalg.vecdot(weights, logps.sub_(mean[:, None]).square_())  # [n]
