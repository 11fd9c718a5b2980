"""Hinge loss on the margin of the gold token: loss and gradient become 0 once the token is unlikely enough."""

import math

from torch import Tensor

from llm_forget.core.errors import ConfigError
from llm_forget.logprobs.logprobs import Logprobs
from llm_forget.objectives._masked import at_targets, back
from llm_forget.objectives._registry import objective
from llm_forget.objectives._vocabulary import gold_margin

UNCALIBRATED = 0.7  # rho without holdout rows; the value of the paper


@objective(paper="arXiv:2606.02920", needs={"logits"}, calibrated="rho")
def hinge(policy: Logprobs, *, rho: float | None = None, eta: float = 0.25) -> Tensor:
    """Return ``relu(m - (tau - eta)) / eta`` of each target token, ``[B, T]``.

    m is the `gold_margin` over the ten best rivals in nats, and ``tau = log(rho / (1 - rho))``. Loss and gradient are 0
    for m below ``tau - eta``. Above, the slope is ``1 / eta``. If ``rho`` is None, training measures it on the tokens
    of holdout rows that the target does not rank first; without holdout rows, it is 0.7. Raise ConfigError unless
    0 < rho < 1 and eta > 0.
    """
    rho = UNCALIBRATED if rho is None else rho
    if not 0 < rho < 1 or eta <= 0:
        raise ConfigError(f"objective 'hinge' needs rho between 0 and 1 and eta above 0, not {rho} and {eta}")
    tau = math.log(rho / (1 - rho))
    margins = gold_margin(at_targets(policy, "logits"), policy.labels[policy.mask])  # [N]
    return back((margins - (tau - eta)).relu() / eta, policy.mask)  # [B, T]
