"""Exceptions of this package, with the exit codes of the command line."""

from __future__ import annotations


class AdapterRefused(ValueError):
    """An adapter that is not exactly what was written, or that nobody vouches for; the command line leaves with 4."""


class EvidenceBroken(ValueError):
    """Ledger, certificate or signature that was altered; the command line leaves with 6."""
