"""SatImp: gradient ascent weighted by how saturated and how important a token is."""

from torch import Tensor

from llm_forget.logprobs.logprobs import Logprobs
from llm_forget.objectives._masked import token_values
from llm_forget.objectives._registry import objective


@objective(paper="arXiv:2505.11953")
def satimp(policy: Logprobs, *, beta1: float = 5.0, beta2: float = 1.0) -> Tensor:
    """``sg(p^beta1 (1 - p)^beta2) log p`` of each target token.

    Returns:
        ``[B, T]``, nats, <= 0; ``beta2 = 0`` is `wga`, both 0 `ga`; 0 at p = 0 and at p = 1.
    """
    logps = token_values(policy)  # [B, T]
    fixed = logps.detach()
    weight = (beta1 * fixed).exp() * (-fixed.expm1()) ** beta2  # [B, T]
    return weight * logps
