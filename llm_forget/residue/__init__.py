"""Search files for remains of texts: `llm-forget scan-residue`. It prints no text, writes no file, needs no torch."""

from llm_forget.residue.scan import Finding, Scan, scan

__all__ = ["Finding", "Scan", "scan"]
