"""Levels of a model on rows: how much of an answer it would say by itself, read off its logits.

Levels of the untouched target on holdout rows estimate what a model that never saw the forget rows would reach on them.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from llm_forget.logprobs.logprobs import Logprobs


@dataclass(frozen=True)
class Levels:
    """One value per row, ``[B]``; NaN for a row without targets."""

    strength: Tensor  # extraction strength: share of the answer that follows the last token not ranked first
    memorization: Tensor  # exact memorization: share of tokens ranked first
    margin: Tensor  # mean margin of the gold token's logit over the best other, nats
    logprob: Tensor  # mean log-prob of the gold token, nats


def levels_of(logprobs: Logprobs) -> Levels:
    """Levels of each row of log-probs with logits.

    Extraction strength as in arXiv:2012.07805 and the metric of that name, exact memorization as in arXiv:2005.04843.
    """
    assert logprobs.logits is not None
    mask, counts = logprobs.mask, logprobs.counts()
    gold = logprobs.labels.unsqueeze(-1)
    chosen = logprobs.logits.gather(-1, gold).squeeze(-1).float()  # [B, T]
    best_other = logprobs.logits.scatter(-1, gold, -torch.inf).amax(-1).float()  # [B, T]
    margins = (chosen - best_other).masked_fill(~mask, 0.0)
    hits = (margins > 0) & mask
    places = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    last_miss = (places * (mask & ~hits)).amax(-1)  # [B], 0 if every token is ranked first
    return Levels(
        strength=1 - last_miss / counts,
        memorization=hits.sum(-1) / counts,
        margin=margins.sum(-1) / counts,
        logprob=logprobs.sums() / counts,
    )
