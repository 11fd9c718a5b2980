"""CE-U: cross-entropy to the policy's own distribution without the gold token."""

from torch import Tensor

from llm_forget.logprobs.logprobs import Logprobs
from llm_forget.objectives._masked import at_targets, back
from llm_forget.objectives._registry import objective
from llm_forget.objectives._vocabulary import cross_entropy, without_gold


@objective(paper="arXiv:2503.01224", needs={"logits"})
def ce_u(policy: Logprobs, *, skip: int = 1) -> Tensor:
    """Return the cross-entropy of the policy to its own distribution without the gold token, ``[B, T]``, nats.

    The distribution is the softmax of the logits with the gold logit at -inf; no gradient flows through it. Values of
    the first ``skip`` target tokens of each row are 0, but the mean still counts them. The paper skips the first token
    of an answer because it shows fluency, not knowledge.
    """
    mask = policy.mask & (policy.mask.cumsum(-1) > skip)  # [B, T]
    logits = at_targets(policy, "logits")  # [N, V]
    target = without_gold(logits, policy.labels[policy.mask])  # [N, V]
    values = back(cross_entropy(target, logits.log_softmax(-1)), policy.mask)  # [B, T]
    return values.masked_fill(~mask, 0.0)
