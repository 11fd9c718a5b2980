"""Unilogit: distil from the policy itself, with the probability of the gold token set to 1/V (V: vocabulary size)."""

import math

from torch import Tensor

from llm_forget.logprobs.logprobs import Logprobs
from llm_forget.objectives._masked import at_targets, back
from llm_forget.objectives._registry import objective
from llm_forget.objectives._vocabulary import divergence, without_gold


@objective(paper="arXiv:2505.06027", needs={"logits"})
def unilogit(policy: Logprobs) -> Tensor:
    """Return the reverse KL, ``KL(policy || q)``, at target positions, ``[B, T]``, nats. It is 0 where p(gold) = 1/V.

    q is the policy's own distribution, detached, with p(gold) set to 1/V and all other probabilities rescaled.
    """
    labels = policy.labels[policy.mask]  # [N]
    logits = at_targets(policy, "logits")  # [N, V]
    size = logits.shape[-1]
    others = without_gold(logits, labels) + math.log1p(-1 / size)  # [N, V]
    target = others.scatter(-1, labels.unsqueeze(-1), -math.log(size))  # [N, V]
    return back(divergence(logits.log_softmax(-1), target), policy.mask)  # [B, T]
