"""Make a small, randomly initialised model with the architecture and the tokenizer of another model."""

import copy
import os
import shutil
from pathlib import Path
from typing import Any

from trl import ModelConfig

from llm_forget.models.load import load_config, load_tokenizer

HALVED = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")


def small_config(config: Any) -> Any:
    """Return a copy of a configuration with half of the layers, heads and sizes, and with the same vocabulary."""
    small = copy.deepcopy(config)
    for name in HALVED:
        if getattr(small, name, None) is not None:
            setattr(small, name, max(1, getattr(small, name) // 2))
    if getattr(small, "layer_types", None):
        small.layer_types = small.layer_types[: small.num_hidden_layers]
    return small


def save_small_copy(model_args: ModelConfig, folder: Path, seed: int) -> Path:
    """Write a small copy of a model and its tokenizer to ``folder``, unless the folder exists. Return the folder."""
    import torch
    from transformers import AutoModelForCausalLM

    if folder.is_dir():
        return folder
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(small_config(load_config(model_args)), dtype=torch.float32)
    temporary = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    model.save_pretrained(temporary)
    load_tokenizer(model_args).save_pretrained(temporary)
    os.replace(temporary, folder)
    return folder
