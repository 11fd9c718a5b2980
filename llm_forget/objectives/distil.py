"""Distil a teacher that never saw the rows: move the policy to what the teacher would say."""

from torch import Tensor

from llm_forget.logprobs.logprobs import Logprobs
from llm_forget.objectives._masked import at_targets, back
from llm_forget.objectives._registry import objective
from llm_forget.objectives._vocabulary import divergence


@objective(paper="arXiv:1503.02531", needs={"logits"})
def distil(policy: Logprobs, teacher: Logprobs, *, temperature: float = 1.0) -> Tensor:
    """``T^2 KL(softmax(teacher / T) || softmax(policy / T))`` at target positions (equation 4 of the paper).

    The factor keeps the size of the gradient the same for every temperature T.

    Returns:
        ``[B, T]``, nats; 0 with zero gradient once the policy says what the teacher says.
    """
    teacher_logprobs = (at_targets(teacher, "logits").detach() / temperature).log_softmax(-1)  # [N, V]
    policy_logprobs = (at_targets(policy, "logits") / temperature).log_softmax(-1)  # [N, V]
    return back(temperature**2 * divergence(teacher_logprobs, policy_logprobs), policy.mask)  # [B, T]
