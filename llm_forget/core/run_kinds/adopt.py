"""The run kind of an adapter that was trained outside this package."""

from llm_forget.core.run_kinds._registry import run_kind

ADOPT = run_kind("adopt", origin=lambda provenance: "made elsewhere, and adopted after checks of its files")
