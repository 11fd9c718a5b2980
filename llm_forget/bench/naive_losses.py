"""Compute the losses of this package as public implementations of unlearning do, with as much work, for comparison.

Their common traits: a second copy of the model is the reference and runs in every step; forget and retain rows are
forwarded separately, each padded on the right to its own longest row; the model gets labels and so computes an unused
loss; logits of every position, prompt and padding included, are float32; for KL, an extra pass over the retain rows
computes a loss that is discarded. The policy uses LoRA here, as in our step, so these losses are cheaper than usual.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from llm_forget.core.ignore_label import IGNORE
from llm_forget.logprobs.logprobs import target_mask

Part = dict[str, Tensor]  # input_ids, attention_mask, labels, each [B, S]


def naive_npo(
    policy: nn.Module, reference: nn.Module, forget: Part, retain: Part, *, beta: float, retain_weight: float
) -> Tensor:
    """Compute NPO (arXiv:2404.05868) on forget plus negative log-likelihood on retain rows: a scalar, nats.

    Equal to our `npo` on the same batch: mean over sequences of ``-(2/beta) log sigmoid(-beta (log p - log p_ref))``
    plus the weighted mean over target tokens of the negative log-likelihood.
    """
    return _npo(policy, reference, forget, beta) + retain_weight * policy(**_inputs(retain)).loss


def naive_npo_kl(
    policy: nn.Module, reference: nn.Module, forget: Part, retain: Part, *, beta: float, retain_weight: float
) -> Tensor:
    """Compute NPO on forget plus KL to the reference on retain rows; the policy passes over retain twice.

    The divergence is computed at every position, but only its mean over targets is returned, so that the result equals
    our `npo_kl`; implementations that average over prompt and padding do the same work.
    """
    loss = _npo(policy, reference, forget, beta)
    _ = policy(**_inputs(retain)).loss  # the extra pass, whose loss is discarded
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
    """Compute the negative log-likelihood of each row's targets, ``[B]``, from logits ``[B, S, V]``."""
    logits = model(**_inputs(part)).logits.float()[:, :-1].contiguous()
    labels = part["labels"][:, 1:].contiguous()
    each = functional.cross_entropy(logits.transpose(1, 2), labels, ignore_index=IGNORE, reduction="none")
    return each.sum(-1)


def _inputs(part: Part) -> Part:
    return {name: part[name] for name in ("input_ids", "attention_mask", "labels")}
