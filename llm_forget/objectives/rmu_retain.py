"""RMU, retain term: keep hidden states close to those of the reference."""

from torch import Tensor

from llm_forget.logprobs.logprobs import Logprobs
from llm_forget.objectives._masked import at_targets, back
from llm_forget.objectives._registry import objective


@objective(paper="arXiv:2403.03218", needs={"hidden_states"})
def rmu_retain(policy: Logprobs, reference: Logprobs, *, layer: int | None = None) -> Tensor:
    """Return the mean over H of ``(h - h_ref)^2`` at target positions, ``[B, T]``. It is 0 at the reference.

    h and h_ref are the outputs ``[H]`` of decoder layer ``layer`` of the policy and the reference, as in `rmu`.
    """
    hidden = at_targets(policy, "hidden")  # [N, H]
    anchor = at_targets(reference, "hidden").detach()  # [N, H]
    return back((hidden - anchor).square().mean(-1), policy.mask)  # [B, T]
