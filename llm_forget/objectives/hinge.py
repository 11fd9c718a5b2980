"""Hinge on the margin of the gold token: a loss that ends where a token is as unlikely as wanted."""

import math

from torch import Tensor

from llm_forget.core.errors import ConfigError
from llm_forget.logprobs.logprobs import Logprobs
from llm_forget.objectives._masked import at_targets, back
from llm_forget.objectives._registry import objective
from llm_forget.objectives._vocabulary import gold_margin

UNCALIBRATED = 0.7  # without holdout rows; the paper's


@objective(paper="arXiv:2606.02920", needs={"logits"}, calibrated="rho")
def hinge(policy: Logprobs, *, rho: float | None = None, eta: float = 0.25) -> Tensor:
    """``relu(m - (tau - eta)) / eta`` of each target token: ``[B, T]``; m is its margin over its ten best rivals, nats,
    and ``tau = log(rho / (1 - rho))``. Loss and gradient are 0 below ``tau - eta``; above it, the slope is ``1 / eta``.

    Where ``rho`` is None, it is that of the tokens of holdout rows that the target does not rank first, or 0.7 without
    holdout rows.
    """
    rho = UNCALIBRATED if rho is None else rho
    if not 0 < rho < 1 or eta <= 0:
        raise ConfigError(f"objective 'hinge' needs rho between 0 and 1 and eta above 0, not {rho} and {eta}")
    tau = math.log(rho / (1 - rho))
    margins = gold_margin(at_targets(policy, "logits"), policy.labels[policy.mask])  # [N]
    return back((margins - (tau - eta)).relu() / eta, policy.mask)  # [B, T]
