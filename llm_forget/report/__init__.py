"""What a run found, on one page, and several runs side by side. Reads run directories; no model and no torch.

`read` opens a run, `verdicts`, `curves`, `distributions`, `recovery` and `facts` turn it into sections of a `document`,
`html` and `markdown` write that down. Numbers come from `results.json` and its neighbours, nothing is typed.
"""

from __future__ import annotations

from llm_forget.report.page import report

__all__ = ["report"]
