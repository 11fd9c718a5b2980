"""RMU, forget term: steer hidden states to one random direction."""

import torch
from torch import Tensor

from llm_forget.logprobs.logprobs import Logprobs
from llm_forget.objectives._masked import at_targets, back
from llm_forget.objectives._registry import objective


@objective(paper="arXiv:2403.03218", needs={"hidden_states"})
def rmu(policy: Logprobs, *, coefficient: float = 6.5, layer: int | None = None, seed: int = 0) -> Tensor:
    """``mean over H of (h - coefficient u)^2`` at target positions: ``[B, T]``; 0 where ``h = coefficient u``. h is the
    output of decoder layer ``layer``, counted from 0; None is a quarter of the depth. u is a random `direction`,
    which depends only on the seed and the size H: it is the same on every rank and in every run.
    """
    hidden = at_targets(policy, "hidden")  # [N, H]
    target = coefficient * direction(hidden.shape[-1], seed).to(hidden.device)  # [H]
    return back((hidden - target).square().mean(-1), policy.mask)  # [B, T]


def direction(size: int, seed: int) -> Tensor:
    """Return a random unit vector ``[H]``, float32: uniform numbers in [0, 1), normalised, as in the paper's code."""
    generator = torch.Generator().manual_seed(seed)
    vector = torch.rand(size, generator=generator)  # [H]
    return vector / vector.norm()
