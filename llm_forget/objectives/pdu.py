"""PDU, forget term: make all logits of a position equal. The retain term of PDU is `nll` with a dual weight."""

from torch import Tensor

from llm_forget.logprobs.logprobs import Logprobs
from llm_forget.objectives._masked import at_targets, back
from llm_forget.objectives._registry import objective


@objective(paper="arXiv:2506.05314", needs={"logits"})
def pdu(policy: Logprobs) -> Tensor:
    """Return ``(max - mean)^2`` of the logits at target positions, ``[B, T]``. It is 0 for uniform distributions."""
    logits = at_targets(policy, "logits")  # [N, V]
    margin = logits.max(-1).values - logits.mean(-1)  # [N]
    return back(margin.square(), policy.mask)  # [B, T]
