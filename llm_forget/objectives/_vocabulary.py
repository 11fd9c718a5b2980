"""Distributions over the vocabulary at N target positions, always as log-probabilities in float32."""

import math

import torch
from torch import Tensor


def without_gold(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the distribution without the gold token: log-softmax of detached ``logits`` ``[N, V]`` with gold at -inf.

    Dividing by the sum of the other tokens, not by ``1 - p(gold)``, stays exact when the gold token is memorised.
    """
    others = logits.detach().float().scatter(-1, labels.unsqueeze(-1), -math.inf)  # [N, V]
    return others.log_softmax(-1)


def cross_entropy(target: Tensor, policy: Tensor) -> Tensor:
    """Return ``-sum p log q`` of log-probabilities ``target`` and ``policy`` ``[N, V]``, 0 log 0 = 0: ``[N]``, nats."""
    return -(target.exp() * policy.masked_fill(torch.isneginf(target), 0.0)).sum(-1)  # [N]


def divergence(left: Tensor, right: Tensor) -> Tensor:
    """Return ``KL(left || right)`` of log-probabilities ``[N, V]``, 0 log 0 = 0: ``[N]``, nats; 0 for equal inputs."""
    ratio = (left - right).masked_fill(torch.isneginf(left), 0.0)  # [N, V]
    return (left.exp() * ratio).sum(-1)  # [N]
