"""Compute losses in the way of public implementations of unlearning, to compare their cost with ours.

The reference is a second copy of the model that runs in every step. Forget and retain rows have separate forward
passes, each padded to its longest row. The model gets labels and computes an unused loss. Logits of all positions are
float32. For KL, an extra forward pass over the retain rows computes a loss that is discarded. The policy uses LoRA.
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
    """Return the mean NPO loss (arXiv:2404.05868) of forget rows plus the weighted NLL of retain rows: a scalar, nats.
    It equals the loss of our method `npo` on the same batch.
    """
    return _npo(policy, reference, forget, beta) + retain_weight * policy(**_inputs(retain)).loss


def naive_npo_kl(
    policy: nn.Module, reference: nn.Module, forget: Part, retain: Part, *, beta: float, retain_weight: float
) -> Tensor:
    """Return the mean NPO loss of forget rows plus the weighted KL to the reference of retain rows: a scalar, nats.

    The policy runs twice on the retain rows. KL is computed at every position, but averaged over the targets only, as
    in our method `npo_kl`.
    """
    loss = _npo(policy, reference, forget, beta)
    _ = policy(**_inputs(retain)).loss  # extra pass; its loss is discarded
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
    """Return the negative log-likelihood of each row, summed over its targets: ``[B]``, nats."""
    logits = model(**_inputs(part)).logits.float()[:, :-1].contiguous()
    labels = part["labels"][:, 1:].contiguous()
    each = functional.cross_entropy(logits.transpose(1, 2), labels, ignore_index=IGNORE, reduction="none")
    return each.sum(-1)


def _inputs(part: Part) -> Part:
    return {name: part[name] for name in ("input_ids", "attention_mask", "labels")}
