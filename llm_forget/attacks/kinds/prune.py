"""Set the smallest weights of the merged model to zero and evaluate it, because pruning can undo unlearning."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from llm_forget.attacks.kinds._registry import attack_kind
from llm_forget.core.errors import EvaluationError

if TYPE_CHECKING:
    from llm_forget.attacks.context import AttackContext, Lines

logger = logging.getLogger("llm_forget")


def _check_share(config: Mapping[str, Any], arguments: Mapping[str, Any]) -> tuple[None, int]:
    """Raise EvaluationError if ``share`` is not between 0 and 1. Return (None, 0): all forget rows are measured."""
    share = arguments["share"]
    if not 0 < share < 1:
        raise EvaluationError(f"share is {share}; it is the share of weights to remove, above 0 and below 1")
    return None, 0


@attack_kind(paper="arXiv:1506.02626", prepare=_check_share)
def prune(context: AttackContext, *, share: float = 0.3, keep: bool = False) -> dict[str, Lines]:
    """Set the smallest weights of the merged unlearned model and of the oracle to zero, and evaluate both.

    Args:
        share: fraction of each weight matrix to set to 0; see `pruned`.
        keep: keep the pruned models, which are as large as the base model, in the folder of the attack.
    """
    from llm_forget.attacks.changed_models import changed_model

    lines = {}
    for role in context.models:
        logger.info("prune: %s, %g of each matrix", role, share)
        with changed_model(context, role, lambda model: pruned(model, share), keep=keep) as name:
            lines[role] = context.measure(name)
    return lines


def pruned(model: Any, share: float) -> Any:
    """Set the smallest entries of the weight ``[out, in]`` of each linear layer to 0, and return the model.

    Of the n entries of a weight, the ``round(share * n)`` of least magnitude are set. Biases, embeddings, the output
    head and mixture-of-experts weights in a single tensor do not change.
    """
    import torch
    from torch.nn.utils.prune import l1_unstructured, remove
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    for module in model.modules():
        if isinstance(module, torch.nn.Linear | Conv1D) and module is not head:
            l1_unstructured(module, "weight", amount=float(share))
            remove(module, "weight")
    return model
