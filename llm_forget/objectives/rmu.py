"""RMU, forget term: move hidden states to one vector of random direction."""

import torch
from torch import Tensor

from llm_forget.logprobs.logprobs import Logprobs
from llm_forget.objectives._masked import at_targets, back
from llm_forget.objectives._registry import objective


@objective(paper="arXiv:2403.03218", needs={"hidden_states"})
def rmu(policy: Logprobs, *, coefficient: float = 6.5, layer: int | None = None, seed: int = 0) -> Tensor:
    """Return the mean over H of ``(h - coefficient u)^2`` at target positions, ``[B, T]``; 0 if ``h = coefficient u``.

    h is the output ``[H]`` of decoder layer ``layer``, counted from 0; None selects the layer at a quarter of the
    depth. u is a random unit vector from `direction`. It depends only on the seed and H, so it is the same on every
    rank and in every run with this seed.
    """
    hidden = at_targets(policy, "hidden")  # [N, H]
    target = coefficient * direction(hidden.shape[-1], seed).to(hidden.device)  # [H]
    return back((hidden - target).square().mean(-1), policy.mask)  # [B, T]


def direction(size: int, seed: int) -> Tensor:
    """Return a random unit vector ``[size]``, float32: normalised uniform numbers in [0, 1), as in the paper's code."""
    generator = torch.Generator().manual_seed(seed)
    vector = torch.rand(size, generator=generator)  # [H]
    return vector / vector.norm()
