"""Quantise the merged model to 8 or 4 bit and evaluate it, because quantisation can undo unlearning."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from llm_forget.attacks.kinds._registry import attack_kind
from llm_forget.core.errors import EvaluationError

if TYPE_CHECKING:
    from llm_forget.attacks.context import AttackContext, Lines

logger = logging.getLogger("llm_forget")
BITS: dict[str, dict[str, Any]] = {
    "nf4": {"load_in_4bit": True, "load_in_8bit": False, "bnb_4bit_quant_type": "nf4"},
    "int8": {"load_in_4bit": False, "load_in_8bit": True},
}


def _check_bits(config: Mapping[str, Any], arguments: Mapping[str, Any]) -> tuple[None, int]:
    """Raise EvaluationError if ``bits`` is unknown. Return (None, 0): all forget rows are measured."""
    if arguments["bits"] not in BITS:
        raise EvaluationError(f"bits is '{arguments['bits']}'; allowed: {', '.join(BITS)}")
    return None, 0


@attack_kind(paper="arXiv:2410.16454", prepare=_check_bits)
def quantize(context: AttackContext, *, bits: str = "nf4", keep: bool = False) -> dict[str, Lines]:
    """Evaluate the merged unlearned model and the oracle in 4 bit (``nf4``) or 8 bit (``int8``).

    With ``keep``, the merged model, which is as large as the base model, stays in the folder of the attack.
    """
    from llm_forget.core.config import model_part
    from llm_forget.models.merging.full_model import merge_adapter

    names = dict(context.models)
    merged = context.folder / "merged"
    if context.run.adapter.is_dir():
        logger.info("quantize: merging '%s'", context.run.path.name)
        shutil.rmtree(merged, ignore_errors=True)
        merge_adapter(model_part(context.run.config), context.run.adapter, merged)
        names["unlearned"] = str(merged)
    try:
        return {role: context.measure(name, **BITS[bits]) for role, name in names.items()}
    finally:
        if not keep:
            shutil.rmtree(merged, ignore_errors=True)
