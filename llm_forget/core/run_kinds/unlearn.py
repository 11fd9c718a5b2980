"""The run kind of unlearning, which trains a model to forget some rows and to keep others."""

from llm_forget.core.run_kinds._registry import run_kind

UNLEARN = run_kind("unlearn", learned=("retain",), forgotten=("forget",))
