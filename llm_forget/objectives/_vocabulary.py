"""Functions of distributions over the vocabulary at N target positions, given as logits or log-probs in float32."""

import math

import torch
from torch import Tensor


def without_gold(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the log-softmax of detached ``logits`` ``[N, V]`` after the gold logit is set to -inf.

    Unlike a division of the probabilities by ``1 - p(gold)``, this is exact even if p(gold) is nearly 1.
    """
    others = logits.detach().float().scatter(-1, labels.unsqueeze(-1), -math.inf)  # [N, V]
    return others.log_softmax(-1)


def gold_margin(logits: Tensor, labels: Tensor, rivals: int = 10) -> Tensor:
    """Return the margin of the gold token, ``[N]``, nats: its logit minus the logsumexp of its best rivals.

    Rivals are the ``rivals`` other tokens with the highest logits (arXiv:2606.02920). The margin is the log-odds of the
    gold token if only it and its rivals exist. With one rival, it is above 0 exactly where the gold token ranks first.
    """
    gold = labels.unsqueeze(-1)  # [N, 1]
    others = logits.scatter(-1, gold, -math.inf)  # [N, V]
    best = others.topk(min(rivals, logits.shape[-1] - 1)).values  # [N, rivals]
    return logits.gather(-1, gold).squeeze(-1) - best.logsumexp(-1)


def cross_entropy(target: Tensor, policy: Tensor) -> Tensor:
    """Return ``-sum p log q``, ``[N]``, nats, for log-probs ``target`` (log p) and ``policy`` (log q); 0 log 0 is 0."""
    return -(target.exp() * policy.masked_fill(torch.isneginf(target), 0.0)).sum(-1)  # [N]


def divergence(left: Tensor, right: Tensor) -> Tensor:
    """Return ``KL(left || right)``, ``[N]``, nats, for log-probs ``[N, V]``. It is 0 for equal inputs; 0 log 0 is 0."""
    ratio = (left - right).masked_fill(torch.isneginf(left), 0.0)  # [N, V]
    return (left.exp() * ratio).sum(-1)  # [N]
