"""Fine-tune on rows other than the forget rows, as a user may, and measure how much of the forget rows is recovered."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from llm_forget.attacks.kinds._registry import attack_kind
from llm_forget.attacks.kinds.relearn import other_rows, train_and_measure
from llm_forget.core.errors import EvaluationError

if TYPE_CHECKING:
    from llm_forget.attacks.context import AttackContext, Lines


def _check(config: Mapping[str, Any], arguments: Mapping[str, Any]) -> tuple[None, int]:
    """Raise EvaluationError if ``data`` or ``steps`` is invalid. Return (None, 0): all forget rows are measured."""
    steps = arguments["steps"]
    if steps < 1:
        raise EvaluationError(f"steps is {steps}; it is a whole number of optimiser steps, 1 or more")
    other_rows(config, arguments["data"], option="data")
    return None, 0


@attack_kind(paper="arXiv:2310.03693", prepare=_check)
def finetune(
    context: AttackContext,
    *,
    data: Any = "retain",
    steps: int = 100,
    learning_rate: float | None = None,
    seed: int = 0,
    keep: bool = False,
) -> dict[str, Lines]:
    """Train a LoRA adapter on each attacked model for ``steps`` steps on other rows, with the settings of `relearn`.

    Args:
        data: rows to train on: a split of the run (such as ``holdout``), or a data source.
        steps: number of optimiser steps.
        learning_rate: default: that of the run.
        seed: seed of the order of rows.
        keep: keep the adapters in the folder of the attack.
    """
    rows = other_rows(context.config, data, option="data")
    return train_and_measure(
        context, rows, description="other rows", keep=keep, max_steps=steps, learning_rate=learning_rate, seed=seed
    )
