"""Export a model with 4- or 8-bit weights as a folder that ``AutoModelForCausalLM.from_pretrained`` loads directly."""

from pathlib import Path
from typing import Any

import torch

from llm_forget.models.adapters.files import disk_errors

FORMS = ("nf4", "int8")


def quantized(folder: Path, form: str, dtype: torch.dtype, device: Any) -> Any:
    """Load a folder of full weights, quantise them to ``form``, and return the model. Other modules have ``dtype``."""
    import bitsandbytes
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    options: dict[str, Any] = {"load_in_8bit": True}
    if form == "nf4":
        options = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": dtype}
    model: Any = AutoModelForCausalLM.from_pretrained(
        str(folder), quantization_config=BitsAndBytesConfig(**options), dtype=dtype, device_map={"": device},
        use_safetensors=True,
    )  # fmt: skip
    for module in model.modules():  # without this, a forward pass repacks the weights: see `load._prepare_quantized`
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False
    return model.eval()


def save_quantized(model: Any, folder: Path) -> None:
    """Write the quantised weights as safetensors files, and the quantisation settings into config.json."""
    model.config._name_or_path = ""  # do not publish a local path
    with disk_errors(folder):
        model.save_pretrained(folder)
