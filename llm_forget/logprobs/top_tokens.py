"""Shorten distributions over the vocabulary to their most likely tokens and the total probability of all others."""

import torch
from torch import Tensor


def top_tokens(logprobs: Tensor, gold: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return (ids, log-probs) of the most likely tokens of each row of ``logprobs`` ``[n, V]``, each ``[n, K]``.

    K is ``count`` or V, whichever is smaller. The gold token of each row, ``gold`` ``[n]``, is always included.
    """
    ranks = logprobs.scatter(-1, gold.unsqueeze(-1), torch.inf)
    tokens = ranks.topk(min(count, logprobs.shape[-1]), -1).indices  # [n, K]
    return tokens, logprobs.gather(-1, tokens)


def rest_logprob(logprobs: Tensor, tokens: Tensor) -> Tensor:
    """Return the log of the total probability of all tokens except ``tokens`` ``[n, K]``: ``[n]``; -inf if K is V."""
    return logprobs.scatter(-1, tokens, -torch.inf).logsumexp(-1)
