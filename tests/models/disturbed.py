"""Give an adapter an effect, without training."""

import torch

from llm_forget.models import ADAPTER

IDS = torch.arange(3, 21).view(2, 9)  # [2, 9]


def disturb(model, adapter=ADAPTER, scale=0.3):
    """Give an adapter an effect: lora_B starts at zero."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name and f".{adapter}." in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * scale
    return model
