"""Distillation: move the policy to the distribution of a teacher that never saw the forget rows."""

from torch import Tensor

from llm_forget.logprobs.logprobs import Logprobs
from llm_forget.objectives._masked import at_targets, back
from llm_forget.objectives._registry import objective
from llm_forget.objectives._vocabulary import divergence


@objective(paper="arXiv:1503.02531", needs={"logits"})
def distil(policy: Logprobs, teacher: Logprobs, *, temperature: float = 1.0) -> Tensor:
    """Return ``t^2 KL(softmax(teacher / t) || softmax(policy / t))`` at target positions, ``[B, T]``, nats.

    This is equation 4 of the paper, with temperature t. The factor t^2 makes the size of the gradient independent of
    the temperature. Value and gradient are 0 where both distributions are equal.
    """
    teacher_logprobs = (at_targets(teacher, "logits").detach() / temperature).log_softmax(-1)  # [N, V]
    policy_logprobs = (at_targets(policy, "logits") / temperature).log_softmax(-1)  # [N, V]
    return back(temperature**2 * divergence(teacher_logprobs, policy_logprobs), policy.mask)  # [B, T]
