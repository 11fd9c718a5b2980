"""Reports of one run or of several side by side, built from run directories without a model or torch.

`run_evidence` reads a run, the modules of `sections` turn it into sections of a `render.document`, and `render.html`
and `render.markdown` write the document. Every number comes from `results.json` and the files beside it.
"""

from llm_forget.report.page import report

__all__ = ["report"]
