"""Negative preference optimisation: gradient ascent that fades as the policy moves away from the reference."""

from torch import Tensor
from torch.nn import functional

from llm_forget.core.errors import ConfigError
from llm_forget.logprobs.logprobs import Logprobs
from llm_forget.objectives._masked import filled_rows, sequence_sums
from llm_forget.objectives._registry import objective


@objective(paper="arXiv:2404.05868")
def npo(policy: Logprobs, reference: Logprobs, *, beta: float = 0.1) -> Tensor:
    """Return ``-(2/beta) log sigmoid(-beta (log p - log p_ref))``, ``[B]``, nats; p: probability of a whole sequence.

    At the reference (the first step), the value is ``(2/beta) log 2``, and the gradient is that of ``log p``, as in
    `ga`. For ``beta -> 0`` the loss tends to ``log p`` plus a constant, so it is gradient ascent everywhere. Raise
    ConfigError if beta <= 0.
    """
    if beta <= 0:
        raise ConfigError(f"objective 'npo' needs beta above 0, not {beta}; its limit at 0 is 'ga'")
    ratio = sequence_sums(policy) - sequence_sums(reference).detach()  # [B]
    return filled_rows(policy, -functional.logsigmoid(-beta * ratio) * (2 / beta))
