"""Reports of one run or of several side by side, built from the files of runs without loading a model or torch."""

from llm_forget.report.page import report

__all__ = ["report"]
