"""SimNPO: NPO without a reference, on the length-normalised likelihood."""

from torch import Tensor
from torch.nn import functional

from llm_forget.core.errors import ConfigError
from llm_forget.logprobs.logprobs import Logprobs
from llm_forget.objectives._masked import filled_rows, sequence_sums
from llm_forget.objectives._registry import objective


@objective(paper="arXiv:2410.07163")
def simnpo(policy: Logprobs, *, beta: float = 4.5, delta: float = 0.0) -> Tensor:
    """``-(2/beta) log sigmoid(beta (L - delta))``: ``[B]``, nats; L is the mean NLL per target token of a sequence. It
    tends to 0 as L rises above ``delta``. ``beta -> 0`` is gradient ascent on L up to a constant.
    """
    if beta <= 0:
        raise ConfigError(f"objective 'simnpo' needs beta above 0, not {beta}; its limit at 0 is 'ga'")
    mean_nll = -sequence_sums(policy) / policy.counts().clamp(min=1)  # [B]
    return filled_rows(policy, -functional.logsigmoid(beta * (mean_nll - delta)) * (2 / beta))
