"""Merge an adapter into its base and prove that the file on disk answers as the adapter did."""

from __future__ import annotations

from typing import Any


def merge_adapter(*args: Any, **kwargs: Any) -> dict[str, Any]:
    """Not written yet."""
    raise NotImplementedError
