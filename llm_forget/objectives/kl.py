"""Forward KL over the vocabulary, which keeps the policy close to the reference."""

from torch import Tensor

from llm_forget.logprobs.logprobs import Logprobs
from llm_forget.objectives._masked import at_targets, back
from llm_forget.objectives._registry import objective
from llm_forget.objectives._vocabulary import divergence


@objective(paper="arXiv:2401.06121", needs={"logits"})
def kl(policy: Logprobs, reference: Logprobs) -> Tensor:
    """Return ``KL(reference || policy)`` at target positions, ``[B, T]``, nats. It is 0 where both models agree."""
    teacher = at_targets(reference, "logits").detach().log_softmax(-1)  # [N, V]
    student = at_targets(policy, "logits").log_softmax(-1)  # [N, V]
    return back(divergence(teacher, student), policy.mask)  # [B, T]
