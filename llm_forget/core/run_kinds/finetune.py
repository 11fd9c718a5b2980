"""The run kind of fine-tuning, which trains the target of unlearning, or an oracle without the forget rows."""

from collections.abc import Mapping
from typing import Any

from llm_forget.core.run_kinds._registry import run_kind


def _origin(provenance: Mapping[str, Any]) -> str:
    rows = provenance.get("data", {}).get("train", {}).get("rows")
    return f"fine-tuned on {f'{rows:,} rows' if rows else 'an unknown number of rows'}"


FINETUNE = run_kind("finetune", learned=("train",), origin=_origin)
