"""SatImp: gradient ascent in which tokens have a weight for saturation and a weight for importance."""

from torch import Tensor

from llm_forget.logprobs.logprobs import Logprobs
from llm_forget.objectives._masked import token_values
from llm_forget.objectives._registry import objective


@objective(paper="arXiv:2505.11953")
def satimp(policy: Logprobs, *, beta1: float = 5.0, beta2: float = 1.0) -> Tensor:
    """Return ``w log p`` of each target token, ``[B, T]``, nats, never above 0; ``w = p^beta1 (1 - p)^beta2``.

    w is detached. ``beta2 = 0`` gives `wga`; ``beta1 = beta2 = 0`` gives `ga`.
    """
    logps = token_values(policy)  # [B, T]
    fixed = logps.detach()
    weight = (beta1 * fixed).exp() * (-fixed.expm1()) ** beta2  # [B, T]
    return weight * logps
