"""Inverted hinge loss (LoKU): swap the gold token with the runner-up."""

from torch import Tensor

from llm_forget.logprobs.logprobs import Logprobs
from llm_forget.objectives._masked import at_targets, back
from llm_forget.objectives._registry import objective


@objective(paper="arXiv:2408.06621", needs={"logits"})
def ihl(policy: Logprobs) -> Tensor:
    """``1 + p(gold) - max over the others of p`` at each target position.

    Returns:
        ``[B, T]``, probability, in [0, 2] by construction (so the hinge's clamp at 0 never acts); 2 where the gold
        token is certain, 0 where another one is.
    """
    labels = policy.labels[policy.mask].unsqueeze(-1)  # [N, 1]
    probabilities = at_targets(policy, "logits").softmax(-1)  # [N, V]
    others = probabilities.scatter(-1, labels, -1.0)  # [N, V]
    values = 1 + probabilities.gather(-1, labels).squeeze(-1) - others.max(-1).values  # [N]
    return back(values, policy.mask)  # [B, T]
