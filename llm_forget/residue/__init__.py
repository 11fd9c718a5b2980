"""What is left of some texts in files: `llm-forget scan-residue`. No torch, nothing is written, no text is shown."""

from __future__ import annotations

from llm_forget.residue.scan import Finding, Scan, scan

__all__ = ["Finding", "Scan", "scan"]
