"""Collect the software versions, device and git commit of a run."""

import importlib.metadata
import platform
import subprocess
from typing import Any

PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets", "trl", "safetensors", "bitsandbytes", "numpy")


def environment() -> dict[str, Any]:
    """Return software versions, device and git commit of the working directory. No value identifies a person."""
    import torch

    cuda = torch.cuda.is_available()
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "llm_forget": importlib.metadata.version("llm-forget"),
        "python": platform.python_version(),
        "packages": versions,
        "git_commit": _git_commit(),
        "device": torch.cuda.get_device_name(0) if cuda else f"cpu ({platform.machine()})",
        "devices": torch.cuda.device_count() if cuda else 1,
        "threads": torch.get_num_threads(),
    }


def _git_commit() -> str | None:
    try:
        result = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()
