"""A model with other weights and the same answers."""

import shutil
from pathlib import Path


def nudged(folder: Path | str, copy: Path) -> str:
    """Copy a model folder with one weight changed by 1e-6; the digest of its weights is another one."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    model.get_input_embeddings().weight.data[0, 0] += 1e-6
    shutil.copytree(folder, copy)
    model.save_pretrained(copy)
    return str(copy)
