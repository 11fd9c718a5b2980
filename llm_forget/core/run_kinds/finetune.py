"""A model that was trained to know its rows: a target or an oracle."""

from collections.abc import Mapping
from typing import Any

from llm_forget.core.run_kinds._registry import run_kind


def _origin(provenance: Mapping[str, Any]) -> str:
    rows = provenance.get("data", {}).get("train", {}).get("rows")
    return f"fine-tuned on {f'{rows:,} rows' if rows else 'an unknown number of rows'}"


FINETUNE = run_kind("finetune", learned=("train",), origin=_origin)
