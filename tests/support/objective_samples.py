"""Random log-probabilities for tests of terms: uneven rows, graphs that end in one leaf per side."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from llm_forget.logprobs.logprobs import Logprobs, token_logprobs

B, T, V, H = 4, 6, 11, 5
COUNTS = (6, 3, 1, 4)


def mask_of(counts: tuple[int, ...] = COUNTS, width: int = T) -> Tensor:
    return torch.arange(width) < torch.tensor(counts)[:, None]


def labels_of(seed: int = 0, rows: int = B, width: int = T) -> Tensor:
    return torch.randint(V, (rows, width), generator=torch.Generator().manual_seed(seed))


def draw(seed: int, *shape: int, scale: float = 2.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def from_logits(logits: Tensor, labels: Tensor, mask: Tensor) -> Logprobs:
    """Log-probabilities of ``labels`` ``[B, T]`` under aligned (already shifted) ``logits`` ``[B, T, V]``."""
    safe = labels.masked_fill(~mask, 0)
    return Logprobs(values=token_logprobs(logits, safe) * mask, mask=mask, labels=safe, logits=logits)


def made_from(
    logits: Tensor, hidden: Tensor | None = None, counts: tuple[int, ...] = COUNTS, seed: int = 0
) -> Logprobs:
    """Log-probabilities of seeded labels under ``logits`` ``[B, T, V]``, with ``hidden`` ``[B, T, H]`` if given."""
    rows, width = logits.shape[:2]
    return replace(from_logits(logits, labels_of(seed, rows, width), mask_of(counts, width)), hidden=hidden)


def sides(needs_grad: bool = False, counts: tuple[int, ...] = COUNTS) -> tuple[dict[str, Logprobs], dict[str, Tensor]]:
    """The inputs of a term, and the leaves ``<input>.logits`` and ``<input>.hidden`` they were made from."""
    leaves: dict[str, Tensor] = {}
    inputs: dict[str, Logprobs] = {}
    for index, name in enumerate(("policy", "reference", "alternate", "alternate_reference", "teacher")):
        logits = draw(index, len(counts), T, V).requires_grad_(needs_grad)
        hidden = draw(index + 10, len(counts), T, H).requires_grad_(needs_grad)
        leaves |= {f"{name}.logits": logits, f"{name}.hidden": hidden}
        chosen = name.startswith("alternate")
        # alternate answers have other lengths and other tokens
        inputs[name] = made_from(logits, hidden, counts if not chosen else counts[::-1], seed=int(chosen))
    return inputs, leaves


def batch() -> tuple[dict[str, Logprobs], dict[str, Logprobs]]:
    """Policy and reference of a batch, by split, as a trainer hands them to an objective."""
    inputs, _ = sides()
    policy = {"forget": inputs["policy"], "retain": inputs["alternate"], "alternate": inputs["alternate"]}
    other = inputs["alternate_reference"]
    return policy, {"forget": inputs["reference"], "retain": other, "alternate": other}


def teacher() -> dict[str, Logprobs]:
    """The teacher of a batch, by split."""
    return {"forget": sides()[0]["teacher"]}
