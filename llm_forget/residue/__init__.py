"""Search files for remains of texts (`llm-forget scan-residue`), without printing these texts and without torch."""

from llm_forget.residue.scan import Finding, Scan, scan

__all__ = ["Finding", "Scan", "scan"]
