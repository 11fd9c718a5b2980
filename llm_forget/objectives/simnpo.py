"""SimNPO: NPO without a reference, on the length-normalised likelihood."""

from torch import Tensor
from torch.nn import functional

from llm_forget.core.errors import ConfigError
from llm_forget.logprobs.logprobs import Logprobs
from llm_forget.objectives._masked import filled_rows, sequence_sums
from llm_forget.objectives._registry import objective


@objective(paper="arXiv:2410.07163")
def simnpo(policy: Logprobs, *, beta: float = 4.5, delta: float = 0.0) -> Tensor:
    """Return ``-(2/beta) log sigmoid(beta (L - delta))``, ``[B]``, nats; L is a sequence's mean NLL per target token.

    The value tends to 0 as L rises above ``delta``. For ``beta -> 0`` the loss tends to ``-L`` plus a constant, so it
    is gradient ascent. Raise ConfigError if beta <= 0.
    """
    if beta <= 0:
        raise ConfigError(f"objective 'simnpo' needs beta above 0, not {beta}; its limit at 0 is 'ga'")
    mean_nll = -sequence_sums(policy) / policy.counts().clamp(min=1)  # [B]
    return filled_rows(policy, -functional.logsigmoid(beta * (mean_nll - delta)) * (2 / beta))
