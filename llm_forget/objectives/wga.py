"""Weighted gradient ascent: tokens that the policy no longer knows get almost no gradient."""

from torch import Tensor

from llm_forget.logprobs.logprobs import Logprobs
from llm_forget.objectives._masked import token_values
from llm_forget.objectives._registry import objective


@objective(paper="arXiv:2502.19301")
def wga(policy: Logprobs, *, beta: float = 1.0) -> Tensor:
    """``sg(p^beta) log p`` of each target token.

    Returns:
        ``[B, T]``, nats, <= 0; ``beta = 0`` is `ga`; weight and value vanish as p -> 0.
    """
    logps = token_values(policy)  # [B, T]
    weight = (beta * logps.detach()).exp()  # [B, T]
    return weight * logps
