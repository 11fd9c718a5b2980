"""Compute the log-probability of each target token under a causal language model."""

from llm_forget.logprobs.logprobs import Logprobs

__all__ = ["Logprobs"]
