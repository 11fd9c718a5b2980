"""Inverted hinge loss (LoKU): move probability from the gold token to the most likely other token."""

from torch import Tensor

from llm_forget.logprobs.logprobs import Logprobs
from llm_forget.objectives._masked import at_targets, back
from llm_forget.objectives._registry import objective


@objective(paper="arXiv:2408.06621", needs={"logits"})
def ihl(policy: Logprobs) -> Tensor:
    """Return ``1 + p(gold) - max p(other)`` at target positions, ``[B, T]``.

    The value is 2 where the gold token is certain and 0 where another token is certain. It is never negative, so the
    clamp at 0 of a usual hinge loss would have no effect.
    """
    labels = policy.labels[policy.mask].unsqueeze(-1)  # [N, 1]
    probabilities = at_targets(policy, "logits").softmax(-1)  # [N, V]
    others = probabilities.scatter(-1, labels, -1.0)  # [N, V]
    values = 1 + probabilities.gather(-1, labels).squeeze(-1) - others.max(-1).values  # [N]
    return back(values, policy.mask)  # [B, T]
