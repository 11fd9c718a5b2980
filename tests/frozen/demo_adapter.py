"""The demo for seed 0, a few steps of each training, and what its adapter holds."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tests.frozen.command_line import succeed

RECIPES = Path(__file__).parents[2] / "recipes" / "demo"
LIBRARIES = ("torch", "transformers", "peft", "accelerate", "trl", "numpy")


def train(folder: Path) -> Path:
    """Target and adapter of the demo, shortened; gives the file of the adapter's weights."""
    target, run = str(folder / "target"), str(folder / "npo")
    short = ("--use_cpu", "true", "--disable_tqdm", "true", "--logging_steps", "50")
    succeed("finetune", str(RECIPES / "target.yaml"), "--output_dir", target, "--max_steps", "10", *short)
    models = ("--model_name_or_path", target, "--oracle", target)
    succeed("unlearn", str(RECIPES / "npo.yaml"), *models, "--output_dir", run, "--max_steps", "4", *short)
    return folder / "npo" / "adapter" / "adapter_model.safetensors"


def described(weights: Path) -> dict[str, Any]:
    """Digest of a file of weights, and shape and L2 norm of each tensor."""
    tensors = load_file(weights)
    return {
        "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "tensors": {name: [list(tensor.shape), float(tensor.norm())] for name, tensor in sorted(tensors.items())},
    }


def fingerprint() -> dict[str, Any]:
    """What decides in which order floating-point numbers are added: the CPU, its threads, the libraries."""
    return {
        "cpu": _cpu_name(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "libraries": {name: importlib.metadata.version(name) for name in LIBRARIES},
    }


def _cpu_name() -> str:
    information = Path("/proc/cpuinfo")
    lines = information.read_text(encoding="utf-8").splitlines() if information.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
