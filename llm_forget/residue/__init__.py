"""Search files for remains of texts (`llm-forget scan-residue`). Print no text, write no file, and need no torch."""

from llm_forget.residue.scan import Finding, Scan, scan

__all__ = ["Finding", "Scan", "scan"]
