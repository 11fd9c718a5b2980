"""Shorten distributions over the vocabulary to their most likely tokens and the mass of the rest."""

import torch
from torch import Tensor


def top_tokens(logprobs: Tensor, gold: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return ids and log-probs of the ``count`` most likely tokens of ``logprobs`` ``[n, V]``: ``[n, K]`` each.

    K is at most V. The gold token, of ``gold`` ``[n]``, is always among them.
    """
    ranks = logprobs.scatter(-1, gold.unsqueeze(-1), torch.inf)
    tokens = ranks.topk(min(count, logprobs.shape[-1]), -1).indices  # [n, K]
    return tokens, logprobs.gather(-1, tokens)


def rest_logprob(logprobs: Tensor, tokens: Tensor) -> Tensor:
    """Return the log of the probability of all tokens but ``tokens`` ``[n, K]``: ``[n]``, nats; -inf if K is V."""
    return logprobs.scatter(-1, tokens, -torch.inf).logsumexp(-1)
