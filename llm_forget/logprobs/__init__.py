"""Compute log-probabilities in one forward pass, faster for models that support it."""

from llm_forget.logprobs.logprobs import Logprobs

__all__ = ["Logprobs"]
