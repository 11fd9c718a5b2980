"""Give an adapter an effect, without training."""

from contextlib import suppress

import torch

from llm_forget.models.adapters.lora import ADAPTER

IDS = torch.arange(3, 21).view(2, 9)  # [2, 9]


def disturb(model, adapter=ADAPTER, scale=0.3):
    """Give an adapter an effect: lora_B starts at zero."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name and f".{adapter}." in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * scale
    return model


def reseal(folder, **changes):
    """Make the manifest of an adapter say what its files are now, as whoever changes the files could."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from llm_forget.core.digests import file_digest
    from llm_forget.core.files import read_json, write_json
    from llm_forget.models.tensor_digests import describe_tensors

    manifest = read_json(folder / "manifest.json")
    for name in manifest["files"]:
        manifest["files"][name] = file_digest(folder / name)
    with suppress(SafetensorError):  # where the file cannot be read, the old ones stay
        manifest["tensors"] = describe_tensors(load_file(folder / "adapter_model.safetensors"))
    write_json(folder / "manifest.json", manifest | changes)
