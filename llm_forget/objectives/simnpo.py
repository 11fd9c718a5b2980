"""SimNPO: NPO without a reference, on length-normalised likelihood."""

from torch import Tensor
from torch.nn import functional

from llm_forget.core.errors import ConfigError
from llm_forget.logprobs.logprobs import Logprobs
from llm_forget.objectives._masked import filled_rows, sequence_sums
from llm_forget.objectives._registry import objective


@objective(paper="arXiv:2410.07163")
def simnpo(policy: Logprobs, *, beta: float = 4.5, delta: float = 0.0) -> Tensor:
    """``-(2/beta) log sigmoid(beta (L/n - delta))``, L/n the mean NLL per token of a sequence.

    Returns:
        ``[B]``, nats; 0 once ``L/n`` is far above ``delta``; ``beta -> 0``: gradient ascent on ``L/n``.
    """
    if beta <= 0:
        raise ConfigError(f"objective 'simnpo' needs beta above 0, not {beta}; its limit at 0 is 'ga'")
    mean_nll = -sequence_sums(policy) / policy.counts().clamp(min=1)  # [B]
    return filled_rows(policy, -functional.logsigmoid(beta * (mean_nll - delta)) * (2 / beta))
