"""Direct preference optimisation: the answer of the forget row is rejected, and an alternate answer is chosen."""

from torch import Tensor
from torch.nn import functional

from llm_forget.core.errors import ConfigError
from llm_forget.logprobs.logprobs import Logprobs
from llm_forget.objectives._masked import filled_rows, sequence_sums
from llm_forget.objectives._registry import objective


@objective(paper="arXiv:2305.18290")
def dpo(
    policy: Logprobs, reference: Logprobs, alternate: Logprobs, alternate_reference: Logprobs, *, beta: float = 0.1
) -> Tensor:
    """Return ``-(2/beta) log sigmoid(beta (r(alternate) - r(policy)))``, ``[B]``, nats.

    ``r = log p - log p_ref`` of a whole answer. Row i of ``alternate`` is the preferred answer (such as "I don't know")
    to the prompt of row i of ``policy``. The factor 2 is that of `npo` (arXiv:2404.05868). The value is
    ``(2/beta) log 2`` at the reference, and equals `npo` where r(alternate) is 0. Raise ConfigError if beta <= 0.
    """
    if beta <= 0:
        raise ConfigError(f"objective 'dpo' needs beta above 0, not {beta}")
    rejected = sequence_sums(policy) - sequence_sums(reference).detach()  # [B]
    chosen = sequence_sums(alternate) - sequence_sums(alternate_reference).detach()  # [B]
    return filled_rows(policy, -functional.logsigmoid(beta * (chosen - rejected)) * (2 / beta))
