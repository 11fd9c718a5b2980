"""Margin polish: a second step that lowers the margins of a model that has already unlearned."""

from torch import Tensor
from torch.nn.functional import softplus

from llm_forget.core.errors import ConfigError
from llm_forget.logprobs.logprobs import Logprobs
from llm_forget.objectives._masked import at_targets, back
from llm_forget.objectives._registry import objective
from llm_forget.objectives._vocabulary import gold_margin


@objective(paper="arXiv:2607.27836", needs={"logits"})
def margin_polish(policy: Logprobs, reference: Logprobs, *, beta: float = 1.0) -> Tensor:
    """``softplus(beta (m - m_ref)) / beta`` of each target token: ``[B, T]``, nats; m is its margin over its ten best
    rivals, and m_ref that of the reference, the model that is polished.

    At the reference the loss is ``log(2) / beta`` with slope 1/2. The slope is never 0: it tends to 1 above m_ref and
    falls as ``exp(beta (m - m_ref))`` below it. ``beta -> inf`` is a hinge at m_ref.
    """
    if beta <= 0:
        raise ConfigError(f"objective 'margin_polish' needs beta above 0, not {beta}")
    labels = policy.labels[policy.mask]  # [N]
    margins, anchors = (gold_margin(at_targets(side, "logits"), labels) for side in (policy, reference))  # [N]
    return back(softplus(beta * (margins - anchors.detach())) / beta, policy.mask)  # [B, T]
