"""Forget term of PDU, which flattens the logits; the retain term of PDU is a constraint."""

from torch import Tensor

from llm_forget.logprobs.logprobs import Logprobs
from llm_forget.objectives._masked import at_targets, back
from llm_forget.objectives._registry import objective


@objective(paper="arXiv:2506.05314", needs={"logits"})
def pdu(policy: Logprobs) -> Tensor:
    """Squared logit margin ``(max - mean)^2`` over the vocabulary at target positions.

    Returns:
        ``[B, T]``, squared logits; 0 where the distribution is uniform.
    """
    logits = at_targets(policy, "logits")  # [N, V]
    margin = logits.max(-1).values - logits.mean(-1)  # [N]
    return back(margin.square(), policy.mask)  # [B, T]
