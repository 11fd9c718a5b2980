"""Weighted gradient ascent: the gradient is almost 0 for tokens that are already unlikely."""

from torch import Tensor

from llm_forget.logprobs.logprobs import Logprobs
from llm_forget.objectives._masked import token_values
from llm_forget.objectives._registry import objective


@objective(paper="arXiv:2502.19301")
def wga(policy: Logprobs, *, beta: float = 1.0) -> Tensor:
    """Return ``w log p`` of each target token, ``[B, T]``, nats; ``w = p^beta`` is detached. ``beta = 0`` is `ga`."""
    logps = token_values(policy)  # [B, T]
    weight = (beta * logps.detach()).exp()  # [B, T]
    return weight * logps
