"""Gradient ascent: raise the loss of the forget rows."""

from torch import Tensor

from llm_forget.logprobs.logprobs import Logprobs
from llm_forget.objectives._masked import token_values
from llm_forget.objectives._registry import objective


@objective(paper="arXiv:2210.01504")
def ga(policy: Logprobs) -> Tensor:
    """Log-likelihood of the target tokens, which training lowers: ``[B, T]``, nats; the negative of `nll`; no lower
    bound.
    """
    return token_values(policy)  # [B, T]
