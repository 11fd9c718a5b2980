"""Check from the header of an adapter file that the file has exactly the tensors that its configuration needs.

PEFT loads matching tensors and only warns about others, so an adapter with renamed tensors would have no effect.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_forget.core.errors import AdapterRefused
from llm_forget.models.adapters.safe_read import Header

if TYPE_CHECKING:
    from peft import LoraConfig

FRONT = "base_model.model."
_KEY = re.compile(
    r"base_model\.model\.(?P<module>[A-Za-z0-9_.\-]+?)\."
    r"(?P<part>lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)(?P<end>\.weight|\.bias)?"
)
DOWN = {"lora_A": "lora_B", "lora_embedding_A": "lora_embedding_B"}  # [r, in]: [out, r]
UP = {up: down for down, up in DOWN.items()}


def refuse_incomplete(header: Mapping[str, Header], config: LoraConfig, path: Path) -> dict[str, dict[str, Header]]:
    """Return the LoRA tensors by module, ``{module: {"lora_A": ..., "lora_B": ...}}``, without modules saved in full.

    Raise AdapterRefused for a tensor that is not part of LoRA, a missing A or B, or a rank that is not configured.
    """
    modules: dict[str, dict[str, Header]] = {}
    for key, tensor in header.items():
        if _saved_whole(key, config):
            continue
        match = _KEY.fullmatch(key)
        if match is None:
            raise AdapterRefused(f"'{path}' holds the unexpected tensor {key[:120]!a}, which no LoRA adapter has")
        if match["end"] != ".bias":
            modules.setdefault(match["module"], {})[match["part"]] = tensor
    ranks = {config.r, *(config.rank_pattern or {}).values()}
    for name, parts in modules.items():
        missing = [half for part, half in (DOWN | UP).items() if part in parts and half not in parts]
        if missing or not DOWN.keys() & parts.keys():
            raise AdapterRefused(f"'{path}': tensor {(missing or ['lora_A'])[0]} of '{name}' is missing")
        for down, up in ((down, up) for down, up in DOWN.items() if down in parts):
            rank = parts[down].shape[0]
            # If one tensor holds all experts, this dimension is the number of experts times the rank.
            whole = rank in ranks or (config.target_parameters and any(rank % r == 0 for r in ranks))
            if len(parts[down].shape) != 2 or parts[up].shape[1:] != (rank,) or not whole:
                raise AdapterRefused(f"'{path}': the tensors of '{name}' do not have the rank of its configuration")
    return modules


def _saved_whole(key: str, config: LoraConfig) -> bool:
    module = key.removeprefix(FRONT).rpartition(".")[0]
    return any(module.endswith(name) for name in config.modules_to_save or [])  # as PEFT matches them


def saved_embeddings(model: Any, header: Mapping[str, Header]) -> dict[str, Any]:
    """Return ``{key in the file: module}`` of embeddings that PEFT saved in full, in addition to the LoRA tensors."""
    ends = [module for module in (model.get_input_embeddings(), model.get_output_embeddings()) if module is not None]
    names = {name: module for name, module in model.named_modules() if any(module is end for end in ends)}
    keys = {f"{FRONT}{name}{layer}.weight": module for name, module in names.items() for layer in ("", ".base_layer")}
    return {key: keys[key] for key in header if key in keys}


def refuse_misfit(model: Any, header: Mapping[str, Header], config: LoraConfig, path: Path) -> None:
    """Raise AdapterRefused if the file has other modules or shapes than this model and configuration need."""
    stored: dict[str, dict[str, Header]] = {}
    for name, parts in refuse_incomplete(header, config, path).items():
        while name.endswith(".base_layer"):  # added by PEFT if a module has two adapted parameters
            name = name.removesuffix(".base_layer")
        stored.setdefault(name, parts)
    expected, shared = dict(_target_modules(model, config)), dict(_modules_of_target_parameters(model, config))
    missing = sorted((expected.keys() | shared.keys()) - stored.keys())
    unexpected = sorted(stored.keys() - expected.keys() - shared.keys())
    if missing or unexpected:
        raise AdapterRefused(
            f"'{path}' does not fit this model: tensors of {len(missing)} modules are missing {missing[:3]}, of "
            f"{len(unexpected)} unexpected {unexpected[:3]}"
        )
    for name, module in expected.items():
        sizes, parts = _sizes(module), stored[name]
        for down, up in ((down, up) for down, up in DOWN.items() if sizes is not None and down in parts):
            if (parts[down].shape[1], parts[up].shape[0]) != sizes:
                raise AdapterRefused(
                    f"'{path}' does not fit this model: '{name}' is of {sizes}, its tensors are for "
                    f"{(parts[down].shape[1], parts[up].shape[0])} (inputs, outputs)"
                )


def _modules(model: Any) -> Iterator[tuple[str, Any]]:
    """Yield the modules of the base model, without the submodules that attached adapters added."""
    from peft import PeftModel
    from peft.tuners.tuners_utils import BaseTunerLayer

    bare = model.get_base_model() if isinstance(model, PeftModel) else model
    inside = "\0"  # no module name begins with NUL
    for name, module in bare.named_modules():
        if name and not name.startswith(inside):
            yield name, module
            if isinstance(module, BaseTunerLayer):
                inside = f"{name}."


def _target_modules(model: Any, config: LoraConfig) -> Iterator[tuple[str, Any]]:
    from peft.tuners.tuners_utils import check_target_module_exists

    if config.target_modules:
        for name, module in _modules(model):
            match = check_target_module_exists(config, name)
            if match is True or isinstance(match, re.Match):
                yield name, module


def _modules_of_target_parameters(model: Any, config: LoraConfig) -> Iterator[tuple[str, Any]]:
    ends = tuple(config.target_parameters or ())
    for name, module in _modules(model) if ends else ():
        for parameter, _ in _bare(module).named_parameters(recurse=False):
            place = f"{name}.{parameter}"
            if any(place == end or place.endswith(f".{end}") for end in ends):
                yield name, module


def _bare(module: Any) -> Any:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return module.get_base_layer() if isinstance(module, BaseTunerLayer) else module


def _sizes(module: Any) -> tuple[int, int] | None:
    """Return (inputs, outputs) of a linear layer or embedding. Return None for other modules, which PEFT checks."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    bare = _bare(module)
    if isinstance(bare, nn.Linear):  # also 4- and 8-bit layers
        return bare.in_features, bare.out_features
    if isinstance(bare, Conv1D):
        return bare.weight.shape[0], bare.weight.shape[1]
    if isinstance(bare, nn.Embedding):
        return bare.num_embeddings, bare.embedding_dim
    return None
