"""The same losses computed without any thought of cost, as public implementations of unlearning do; to compare with.

What they have in common: a second copy of the model as the reference, which runs in every step; forget and retain rows
forwarded apart, each padded on the right to its own longest row; labels given to the model, which then also computes a
loss that nobody reads; logits of every position, prompt and padding included, in float32; and for KL a pass over the
retain rows whose loss is thrown away before the one that is used. The policy is under LoRA here as in our step, which
is to the advantage of this side.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from llm_forget.core.labels import IGNORE
from llm_forget.logprobs.logprobs import target_mask

Part = dict[str, Tensor]  # input_ids, attention_mask, labels, each [B, S]


def naive_npo(
    policy: nn.Module, reference: nn.Module, forget: Part, retain: Part, *, beta: float, retain_weight: float
) -> Tensor:
    """NPO (arXiv:2404.05868) on forget and negative log-likelihood on retain rows: a scalar, nats.

    Equal to our `npo` of the same batch: mean over sequences of ``-(2/beta) log sigmoid(-beta (log p - log p_ref))``
    plus the weighted mean over target tokens of the negative log-likelihood.
    """
    return _npo(policy, reference, forget, beta) + retain_weight * policy(**_inputs(retain)).loss


def naive_npo_kl(
    policy: nn.Module, reference: nn.Module, forget: Part, retain: Part, *, beta: float, retain_weight: float
) -> Tensor:
    """NPO on forget and KL to the reference on retain rows; the policy passes over retain twice.

    The divergence is computed at every position. Only its mean over targets is returned, so that the number is that of
    our `npo_kl`; implementations that average over prompt and padding do the same work for another number.
    """
    loss = _npo(policy, reference, forget, beta)
    _ = policy(**_inputs(retain)).loss  # the pass that is taken for NLL and thrown away
    with torch.no_grad():
        teacher = reference(**_inputs(retain)).logits.float().log_softmax(-1)  # [B, S, V]
    student = policy(**_inputs(retain)).logits.float().log_softmax(-1)  # [B, S, V]
    each = functional.kl_div(student, teacher, reduction="none", log_target=True).sum(-1)  # [B, S]
    where = target_mask(retain["labels"])
    return loss + retain_weight * (each[:, :-1] * where).sum() / where.sum()


def _npo(policy: nn.Module, reference: nn.Module, forget: Part, beta: float) -> Tensor:
    losses = _sequence_losses(policy, forget)  # [B]
    with torch.no_grad():
        before = _sequence_losses(reference, forget)  # [B]
    return -functional.logsigmoid(-beta * (before - losses)).mean() * 2 / beta


def _sequence_losses(model: Any, part: Part) -> Tensor:
    """Negative log-likelihood of each row's targets, ``[B]``, from logits ``[B, S, V]``."""
    logits = model(**_inputs(part)).logits.float()[:, :-1].contiguous()
    labels = part["labels"][:, 1:].contiguous()
    each = functional.cross_entropy(logits.transpose(1, 2), labels, ignore_index=IGNORE, reduction="none")
    return each.sum(-1)


def _inputs(part: Part) -> Part:
    return {name: part[name] for name in ("input_ids", "attention_mask", "labels")}
