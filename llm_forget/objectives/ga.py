"""Gradient ascent: raise the loss of the forget rows."""

from torch import Tensor

from llm_forget.logprobs.logprobs import Logprobs
from llm_forget.objectives._masked import token_values
from llm_forget.objectives._registry import objective


@objective(paper="arXiv:2210.01504")
def ga(policy: Logprobs) -> Tensor:
    """Return the log-probability of each target token, ``[B, T]``, nats. Training lowers it, without a lower bound.

    It is the negative of `nll`.
    """
    return token_values(policy)  # [B, T]
