"""Reports on one run, or on several side by side. They are built from files of the runs, without a model or torch."""

from llm_forget.report.page import report

__all__ = ["report"]
