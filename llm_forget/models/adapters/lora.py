"""Attach the adapter "unlearn" (LoRA), and switch it off to compute the reference without a second model."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import nn

from llm_forget.core.errors import ModelError, library_errors
from llm_forget.logprobs.logprobs import evaluation_mode

if TYPE_CHECKING:
    from peft import PeftModel
    from trl import ModelConfig

ADAPTER = "unlearn"
ALL_LINEAR = "all-linear"


@library_errors(ModelError, ValueError, OSError, ImportError)
def attach_adapter(model: Any, model_args: ModelConfig) -> PeftModel:
    """Add the LoRA adapter "unlearn" to the model in place, and freeze all other weights.

    Earlier adapters remain active. Without ``lora_target_modules``, all linear layers except the head are adapted,
    including the experts of mixture models. If ``lora_dropout`` is above 0, policy and reference differ at the first
    step. Raise ModelError if there already is an adapter "unlearn", or if experts would be adapted with dropout or
    DoRA.
    """
    from peft import PeftModel, get_peft_model

    frozen = frozen_adapters(model)
    if ADAPTER in _adapter_names(model):
        raise ModelError(f"the model already carries an adapter '{ADAPTER}'; merge it, or load its base")
    config = _lora_config(model, model_args)
    if not isinstance(model, PeftModel):
        return get_peft_model(model, config, adapter_name=ADAPTER)
    model.add_adapter(ADAPTER, config)
    activate_all(model)
    model.set_requires_grad(frozen, False)
    return model


def activate_all(model: Any) -> None:
    """Activate all adapters, in the order of training, so that their sum is always rounded in the same way."""
    # PeftModel.set_adapter takes one name; its tuner takes several.
    names = list(model.peft_config)
    model.active_adapter = names[-1]
    model.base_model.set_adapter(names)


def frozen_adapters(model: nn.Module) -> list[str]:
    """Return the names of all adapters except "unlearn", in the order of training."""
    return [name for name in _adapter_names(model) if name != ADAPTER]


def _adapter_names(model: nn.Module) -> list[str]:
    tuner = _tuner(model)
    return [] if tuner is None else list(tuner.peft_config)


def _lora_config(model: Any, model_args: ModelConfig) -> Any:
    from transformers.pytorch_utils import Conv1D
    from trl import get_peft_config

    targets: Any = model_args.lora_target_modules or ALL_LINEAR
    config: Any = get_peft_config(dataclasses.replace(model_args, use_peft=True, lora_target_modules=targets))
    experts = _expert_parameters(model) if targets == ALL_LINEAR else []
    if experts and config.target_parameters is None:
        if model_args.lora_dropout or model_args.use_dora:
            raise ModelError(
                f"{', '.join(experts)} hold the experts as one tensor, where LoRA knows neither dropout nor DoRA; set "
                "lora_dropout: 0 and use_dora: false, or name other lora_target_modules"
            )
        config.target_parameters = experts
    if isinstance(targets, str) and targets != ALL_LINEAR:
        # TRL turns a list with one name into a string, which PEFT would match against the full path of a module.
        config.target_modules = {targets}
    # Conv1D is GPT-2's linear layer; its weight is [in, out].
    config.fan_in_fan_out = any(isinstance(module, Conv1D) for module in model.modules())
    return config


def _expert_parameters(model: nn.Module) -> list[str]:
    """Return the names of the parameters ``[experts, in, out]`` of experts, which PEFT's "all-linear" leaves out."""
    names = (name.split(".") for name, parameter in model.named_parameters() if parameter.ndim == 3)
    return sorted({name[-1] for name in names if "experts" in name and "lora_A" not in name})


@contextmanager
def reference_mode(model: nn.Module) -> Iterator[None]:
    """Switch adapter "unlearn" and dropout off within a ``with`` block, so that the model computes the reference.

    Afterwards, also after an exception, active adapters, ``requires_grad`` and module modes are restored. Blocks may be
    nested, and the model may be wrapped (DDP, FSDP, DeepSpeed). Raise ModelError if there is no adapter "unlearn".
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    tuner = _tuner(model)
    if tuner is None or ADAPTER not in tuner.peft_config:
        raise ModelError(f"the model has no adapter '{ADAPTER}' to switch off; call attach_adapter first")
    # PEFT's disable_adapter() also turns earlier adapters off, and afterwards makes all active adapters trainable.
    # So this function saves and restores each flag.
    gradients = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    active = tuner.active_adapter
    beneath = [name for name in tuner.active_adapters if name != ADAPTER]
    off = any(layer.disable_adapters for layer in tuner.modules() if isinstance(layer, BaseTunerLayer))
    try:
        if not off and beneath:
            tuner.set_adapter(beneath, inference_mode=True)
        elif not off:
            tuner.disable_adapter_layers()
        with evaluation_mode(model):
            yield
    finally:
        if not off:
            tuner.enable_adapter_layers()
            tuner.set_adapter(active)
        for parameter, flag in gradients:
            parameter.requires_grad_(flag)


def _tuner(model: nn.Module) -> Any:
    from peft.tuners.tuners_utils import BaseTuner

    return next((module for module in model.modules() if isinstance(module, BaseTuner)), None)


def prepare_gradient_checkpointing(model: Any) -> None:
    """Turn on gradient checkpointing, and gradients with respect to the output of the embedding.

    Without these gradients, checkpointed layers after the frozen embedding would not train their LoRA weights.
    Checkpointing is non-reentrant, because reentrant checkpointing fails under DDP.
    """
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.config.use_cache = False


def quantization_of(model: nn.Module) -> dict[str, Any] | None:
    """Return the quantisation of a model's base as fields of ``ModelConfig``, or None for an unquantised base."""
    config = getattr(getattr(model, "config", None), "quantization_config", None)
    if config is None:
        return None
    fields = config if isinstance(config, dict) else config.to_dict()
    if fields.get("load_in_4bit"):
        return {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": fields["bnb_4bit_quant_type"],
            "use_bnb_nested_quant": fields["bnb_4bit_use_double_quant"],
            "bnb_4bit_quant_storage": fields.get("bnb_4bit_quant_storage"),
        }
    if fields.get("load_in_8bit"):
        return {"load_in_8bit": True}
    return {"quant_method": str(fields.get("quant_method"))}
