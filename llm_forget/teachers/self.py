"""The target's own distribution, with the gold token no likelier than guessing; needs no other model and no names."""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from llm_forget.teachers._registry import Context, teacher


@teacher(paper="arXiv:2505.06027")
def self(context: Context, *, level: float = 0.0) -> Iterator[Tensor]:
    """The target's log-probs with p(gold) lowered to ``level`` (0: to ``1 / V``) where it is above; the rest rescaled.

    Tokens that the target finds less likely than that stay as they are.
    """
    for row, logits in zip(context.rows, context.forward("target", context.rows), strict=True):
        yield lowered(logits, context.targets(row), level)


def lowered(logits: Tensor, targets: Sequence[int], level: float = 0.0) -> Tensor:
    """Log-probs ``[n, V]`` with p(gold) of each target lowered to ``level``, as in `self`."""
    logprobs = logits.log_softmax(-1)  # [n, V]
    gold = torch.tensor(targets).unsqueeze(-1)  # [n, 1]
    cap = math.log(level or 1 / logits.shape[-1])
    others = logprobs.scatter(-1, gold, -math.inf).log_softmax(-1) + math.log1p(-math.exp(cap))
    return torch.where(logprobs.gather(-1, gold) > cap, others.scatter(-1, gold, cap), logprobs)
