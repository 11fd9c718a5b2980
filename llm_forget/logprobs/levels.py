"""Levels: how much of the answer of each row a model would generate by itself, computed from its logits.

Levels of the target (the model before unlearning) on holdout rows estimate the levels that a model which never saw the
forget rows would have on the forget rows.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from llm_forget.logprobs.logprobs import Logprobs


@dataclass(frozen=True)
class Levels:
    """The levels of B rows. Each field has one value per row, ``[B]``, NaN for a row without targets."""

    strength: Tensor  # extraction strength: share of the answer after the last gold token that is not ranked first
    memorization: Tensor  # exact memorization: share of gold tokens that are ranked first
    margin: Tensor  # logit of the gold token minus the highest other logit, mean over tokens, nats
    logprob: Tensor  # log-prob of the gold token, mean over tokens, nats


def levels_of(logprobs: Logprobs) -> Levels:
    """Return the levels of each row. ``logprobs`` must contain logits.

    Extraction strength is defined as in arXiv:2012.07805 and in the metric ``extraction_strength``, exact memorization
    as in arXiv:2005.04843.
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
