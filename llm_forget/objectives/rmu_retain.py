"""RMU, retain side: keep hidden states where they were."""

from torch import Tensor

from llm_forget.logprobs.logprobs import Logprobs
from llm_forget.objectives._masked import at_targets, back
from llm_forget.objectives._registry import objective


@objective(paper="arXiv:2403.03218", needs={"hidden_states"})
def rmu_retain(policy: Logprobs, reference: Logprobs, *, layer: int | None = None) -> Tensor:
    """``mean over H of (h - h_ref)^2`` at target positions, h the output of decoder layer ``layer``.

    ``layer`` says which hidden states to carry, as in `rmu`; None = a quarter of the depth.

    Returns:
        ``[B, T]``; 0 with zero gradient at the reference.
    """
    hidden = at_targets(policy, "hidden")  # [N, H]
    anchor = at_targets(reference, "hidden").detach()  # [N, H]
    return back((hidden - anchor).square().mean(-1), policy.mask)  # [B, T]
