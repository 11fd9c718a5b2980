"""Margin polish: a second training run that lowers the margins of a model that has already unlearned."""

from torch import Tensor
from torch.nn.functional import softplus

from llm_forget.core.errors import ConfigError
from llm_forget.logprobs.logprobs import Logprobs
from llm_forget.objectives._masked import at_targets, back
from llm_forget.objectives._registry import objective
from llm_forget.objectives._vocabulary import gold_margin


@objective(paper="arXiv:2607.27836", needs={"logits"})
def margin_polish(policy: Logprobs, reference: Logprobs, *, beta: float = 1.0) -> Tensor:
    """Return ``softplus(beta (m - m_ref)) / beta`` of each target token, ``[B, T]``, nats.

    m is the `gold_margin` of the policy over the ten best rivals. m_ref is the margin of the reference, the model
    before this run. At the reference the loss is ``log(2) / beta`` and its slope in m is 1/2. The slope is never 0: it
    tends to 1 far above m_ref, and to ``exp(beta (m - m_ref))`` far below. ``beta -> inf`` gives a hinge at m_ref.
    Raise ConfigError if beta <= 0.
    """
    if beta <= 0:
        raise ConfigError(f"objective 'margin_polish' needs beta above 0, not {beta}")
    labels = policy.labels[policy.mask]  # [N]
    margins, anchors = (gold_margin(at_targets(side, "logits"), labels) for side in (policy, reference))  # [N]
    return back(softplus(beta * (margins - anchors.detach())) / beta, policy.mask)  # [B, T]
