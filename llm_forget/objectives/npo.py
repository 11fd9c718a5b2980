"""Negative preference optimisation: gradient ascent that fades as the policy moves away from the reference."""

from torch import Tensor
from torch.nn import functional

from llm_forget.core.errors import ConfigError
from llm_forget.logprobs.logprobs import Logprobs
from llm_forget.objectives._masked import filled_rows, sequence_sums
from llm_forget.objectives._registry import objective


@objective(paper="arXiv:2404.05868")
def npo(policy: Logprobs, reference: Logprobs, *, beta: float = 0.1) -> Tensor:
    """``-(2/beta) log sigmoid(-beta (log p - log p_ref))`` of whole sequences: ``[B]``, nats. It is ``(2/beta) log 2``
    at the reference (the first step), with the gradient of `ga` on the sequence sum. ``beta -> 0`` is gradient ascent
    on the sequence sum everywhere, up to a constant.
    """
    if beta <= 0:
        raise ConfigError(f"objective 'npo' needs beta above 0, not {beta}; its limit at 0 is 'ga'")
    ratio = sequence_sums(policy) - sequence_sums(reference).detach()  # [B]
    return filled_rows(policy, -functional.logsigmoid(-beta * ratio) * (2 / beta))
