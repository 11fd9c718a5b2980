"""Two run kinds: a run with a combined adapter, and a version of a merged model."""

from collections.abc import Mapping
from typing import Any

from llm_forget.core.run_kinds._registry import run_kind


def _origin(provenance: Mapping[str, Any]) -> str:
    parts = ", ".join(f"{source['scale']:g} times {source['run']}" for source in provenance.get("sources", ()))
    return f"the sum of the weight changes of these runs: {parts or 'not known'}"


COMBINE = run_kind("combine", origin=_origin)  # a run with a combined adapter
MERGE = run_kind("merge", merged=True)  # a version of a combined adapter or of a merged full model
