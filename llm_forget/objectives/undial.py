"""UNDIAL: distil from the reference after the logit of the gold token is lowered."""

import torch
from torch import Tensor

from llm_forget.logprobs.logprobs import Logprobs
from llm_forget.objectives._masked import at_targets, back
from llm_forget.objectives._registry import objective
from llm_forget.objectives._vocabulary import cross_entropy


@objective(paper="arXiv:2402.10052", needs={"logits"})
def undial(policy: Logprobs, reference: Logprobs, *, beta: float = 10.0) -> Tensor:
    """Return the cross-entropy of the policy to ``softmax(reference logits - beta onehot(gold))``, ``[B, T]``, nats.

    ``beta = 0`` distils from the unchanged reference. For ``beta -> inf``, the gold token has probability 0.
    """
    labels = policy.labels[policy.mask].unsqueeze(-1)  # [N, 1]
    teacher = at_targets(reference, "logits").detach()  # [N, V]
    lowered = teacher.scatter_add(-1, labels, torch.full_like(labels, -beta, dtype=teacher.dtype))
    student = at_targets(policy, "logits").log_softmax(-1)  # [N, V]
    return back(cross_entropy(lowered.log_softmax(-1), student), policy.mask)  # [B, T]
