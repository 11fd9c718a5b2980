"""Unilogit: distil from oneself with the gold token at uniform probability."""

import math

from torch import Tensor

from llm_forget.logprobs.logprobs import Logprobs
from llm_forget.objectives._masked import at_targets, back
from llm_forget.objectives._registry import objective
from llm_forget.objectives._vocabulary import divergence, without_gold


@objective(paper="arXiv:2505.06027", needs={"logits"})
def unilogit(policy: Logprobs) -> Tensor:
    """``KL(policy || q)``, q the policy's own detached softmax with p(gold) moved to 1/V and the rest rescaled.

    The paper's reverse KL: the policy comes first.

    Returns:
        ``[B, T]``, nats; 0 with zero gradient once p(gold) = 1/V; ``log V`` where the gold token is certain.
    """
    labels = policy.labels[policy.mask]  # [N]
    logits = at_targets(policy, "logits")  # [N, V]
    size = logits.shape[-1]
    others = without_gold(logits, labels) + math.log1p(-1 / size)  # [N, V]
    target = others.scatter(-1, labels.unsqueeze(-1), -math.log(size))  # [N, V]
    return back(divergence(logits.log_softmax(-1), target), policy.mask)  # [B, T]
