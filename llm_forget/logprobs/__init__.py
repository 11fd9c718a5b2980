"""One forward pass to log-probabilities, and the fast paths to them."""

from llm_forget.logprobs.logprobs import Logprobs

__all__ = ["Logprobs"]
