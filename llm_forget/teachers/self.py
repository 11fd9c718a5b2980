"""Teacher ``self``: the target's own distribution with p(gold) capped. It needs no other model and no names."""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from llm_forget.teachers._registry import Context, teacher


@teacher(paper="arXiv:2505.06027")
def self(context: Context, *, level: float = 0.0) -> Iterator[Tensor]:
    """Yield, for each row, the target's log-probs with p(gold) lowered to ``level`` where it is higher.

    All other probabilities are rescaled. Positions with a lower p(gold) do not change. ``level = 0`` means ``1 / V``.
    """
    for row, logits in zip(context.rows, context.forward("target", context.rows), strict=True):
        yield lowered(logits, context.targets(row), level)


def lowered(logits: Tensor, targets: Sequence[int], level: float = 0.0) -> Tensor:
    """Return log-probs ``[n, V]`` in which p(gold) of each of the n targets is at most ``level``, as in `self`."""
    logprobs = logits.log_softmax(-1)  # [n, V]
    gold = torch.tensor(targets).unsqueeze(-1)  # [n, 1]
    cap = math.log(level or 1 / logits.shape[-1])
    others = logprobs.scatter(-1, gold, -math.inf).log_softmax(-1) + math.log1p(-math.exp(cap))
    return torch.where(logprobs.gather(-1, gold) > cap, others.scatter(-1, gold, cap), logprobs)
