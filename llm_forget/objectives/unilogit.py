"""Unilogit: self-distillation with the probability of the gold token set to that of a uniform distribution."""

import math

from torch import Tensor

from llm_forget.logprobs.logprobs import Logprobs
from llm_forget.objectives._masked import at_targets, back
from llm_forget.objectives._registry import objective
from llm_forget.objectives._vocabulary import divergence, without_gold


@objective(paper="arXiv:2505.06027", needs={"logits"})
def unilogit(policy: Logprobs) -> Tensor:
    """Reverse KL, ``KL(policy || q)``, at target positions: ``[B, T]``, nats; 0 where p(gold) = 1/V. q is the policy's
    detached softmax with p(gold) set to 1/V and the other probabilities rescaled.
    """
    labels = policy.labels[policy.mask]  # [N]
    logits = at_targets(policy, "logits")  # [N, V]
    size = logits.shape[-1]
    others = without_gold(logits, labels) + math.log1p(-1 / size)  # [N, V]
    target = others.scatter(-1, labels.unsqueeze(-1), -math.log(size))  # [N, V]
    return back(divergence(logits.log_softmax(-1), target), policy.mask)  # [B, T]
