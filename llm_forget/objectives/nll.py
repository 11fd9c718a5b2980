"""Negative log-likelihood: the retain term, and the loss of fine-tuning and retraining."""

from torch import Tensor

from llm_forget.logprobs.logprobs import Logprobs
from llm_forget.objectives._masked import token_values
from llm_forget.objectives._registry import objective


@objective()
def nll(policy: Logprobs) -> Tensor:
    """Return the cross-entropy of each target token, ``[B, T]``, nats. Its mean is a Hugging Face causal LM's loss."""
    return -token_values(policy)  # [B, T]
