"""Search files for remains of texts: `llm-forget scan-residue`. Needs no torch, writes no file, prints no text."""

from llm_forget.residue.scan import Finding, Scan, scan

__all__ = ["Finding", "Scan", "scan"]
