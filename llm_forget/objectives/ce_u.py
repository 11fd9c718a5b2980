"""CE-U: cross-entropy to the policy's own distribution without the gold token."""

from torch import Tensor

from llm_forget.logprobs.logprobs import Logprobs
from llm_forget.objectives._masked import at_targets, back
from llm_forget.objectives._registry import objective
from llm_forget.objectives._vocabulary import cross_entropy, without_gold


@objective(paper="arXiv:2503.01224", needs={"logits"})
def ce_u(policy: Logprobs, *, skip: int = 1) -> Tensor:
    """Cross-entropy of the policy to ``sg(softmax(logits, gold at -inf))``.

    ``skip`` target tokens at the start of each row are left alone (the paper's footnote: the first token of an answer
    is fluency, not knowledge). They are 0 here but still counted by the mean over target tokens.

    Returns:
        ``[B, T]``, nats; at least the entropy of the others; the gradient ``p - q`` stays bounded.
    """
    mask = policy.mask & (policy.mask.cumsum(-1) > skip)  # [B, T]
    logits = at_targets(policy, "logits")  # [N, V]
    target = without_gold(logits, policy.labels[policy.mask])  # [N, V]
    values = back(cross_entropy(target, logits.log_softmax(-1)), policy.mask)  # [B, T]
    return values.masked_fill(~mask, 0.0)
