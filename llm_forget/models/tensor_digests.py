"""Compute digests of tensors from their bytes, shapes and dtypes."""

import hashlib
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from llm_forget.core.digests import json_digest


def tensor_digest(tensor: Tensor) -> str:
    """Return ``sha256:`` and the hash of a tensor's bytes (row-major, little-endian), without shape and dtype."""
    import torch

    # Viewed as bytes, because NumPy has no bfloat16.
    flat = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
    return "sha256:" + hashlib.sha256(flat.numpy().data).hexdigest()


def describe_tensors(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
    """Return ``{name: {"sha256", "shape", "dtype"}}`` of all tensors, sorted by name."""
    return {
        name: {
            "sha256": tensor_digest(tensors[name]).removeprefix("sha256:"),
            "shape": list(tensors[name].shape),
            "dtype": str(tensors[name].dtype).removeprefix("torch."),
        }
        for name in sorted(tensors)
    }


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """Return one digest of the names, shapes, dtypes and bytes of all tensors."""
    return json_digest(describe_tensors(tensors))
