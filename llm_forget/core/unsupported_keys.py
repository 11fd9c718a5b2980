"""Check settings before a run starts: refuse library settings that have no effect here, and values that cannot work."""

import dataclasses
import importlib.util
import re
from typing import Any

from trl import ModelConfig

from llm_forget.core.errors import ConfigError

_EVALUATION = "nothing is evaluated during training; use `llm-forget evaluate`"
_LOADING = "the batches are built by this package, with every row once an epoch"
_HUB = "training publishes nothing"
_RESUME = "a resume would not be exact"
# Key -> the value that means "not used", and why other values are refused.
NO_EFFECT: dict[str, tuple[Any, str]] = {
    "eval_strategy": ("no", _EVALUATION),
    **dict.fromkeys(("eval_on_start", "prediction_loss_only", "batch_eval_metrics", "do_eval"), (False, _EVALUATION)),
    **dict.fromkeys(("do_predict", "load_best_model_at_end", "eval_use_gather_object"), (False, _EVALUATION)),
    **dict.fromkeys(("fp16_full_eval", "bf16_full_eval"), (False, _EVALUATION)),
    **dict.fromkeys(("eval_steps", "eval_accumulation_steps", "metric_for_best_model"), (None, _EVALUATION)),
    "label_names": (None, _EVALUATION),
    "eval_delay": (0, _EVALUATION),
    "label_smoothing_factor": (0.0, "the objective is the whole loss"),
    "average_tokens_across_devices": (True, "losses are divided by the counts of the whole step"),
    "include_num_input_tokens_seen": ("no", "tokens per second are logged"),
    "train_sampling_strategy": ("random", _LOADING),
    "length_column_name": ("length", _LOADING),
    "dataloader_drop_last": (False, _LOADING),
    "dataloader_persistent_workers": (False, _LOADING),
    "dataloader_prefetch_factor": (None, _LOADING),
    "dataloader_multiprocessing_context": (None, _LOADING),
    "remove_unused_columns": (False, _LOADING),
    "parallelism_config": (None, "rows are shared out over data-parallel processes only"),
    "auto_find_batch_size": (False, "the batch size decides what is learned; lower it, and accumulate"),
    "save_only_model": (False, _RESUME),
    "ignore_data_skip": (False, _RESUME),
    "resume_from_checkpoint": (None, "a run resumes from its own newest checkpoint: use the same output_dir"),
    **dict.fromkeys(("push_to_hub", "hub_always_push"), (False, _HUB)),
    **dict.fromkeys(("hub_model_id", "hub_private_repo", "hub_revision"), (None, _HUB)),
}  # fmt: skip
# Pattern of `optim` -> its module and the package to install; all other optimizers come with torch.
OPTIMIZERS = {
    r"adamw_bnb_8bit|adamw_8bit|paged_.*|lion_.*|ademamix.*|rmsprop_bnb.*": ("bitsandbytes", "bitsandbytes"),
    r"adamw_torch_[48]bit": ("torchao", "torchao"),
    r"galore_.*": ("galore_torch", "galore-torch"),
    r"apollo_.*": ("apollo_torch", "apollo-torch"),
    r"(ada)?lomo": ("lomo_optim", "lomo-optim"),
    r"grokadamw": ("grokadamw", "grokadamw"),
    r"schedule_free_.*": ("schedulefree", "schedulefree"),
    r"stable_adamw": ("optimi", "torch-optimi"),
    r"adamw_anyprecision": ("torchdistx", "torchdistx"),
}
DTYPES = ("float32", "bfloat16", "float16", "auto")


def check_training(train: Any) -> None:
    """Raise ConfigError for a training key that has no effect here, or a value that cannot work (batch size 0)."""
    for key, (unused, why) in NO_EFFECT.items():
        value = getattr(train, key, unused)  # another version of transformers may not have it
        if getattr(value, "value", value) != unused:
            raise ConfigError(f"'{key}' is not supported: {why}; remove the key")
    if train.save_strategy == "best":
        raise ConfigError(f"save_strategy 'best' is not supported: {_EVALUATION}; take epoch, steps or no")
    if train.max_steps == 0 or (train.max_steps < 0 and not train.num_train_epochs > 0):
        raise ConfigError(
            f"num_train_epochs {train.num_train_epochs} and max_steps {train.max_steps} train nothing; set one above 0"
        )
    _check_optimizer(str(getattr(train.optim, "value", train.optim)))
    for key in ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"):
        if getattr(train, key) < 1:
            raise ConfigError(f"{key} is {getattr(train, key)}; it must be 1 or more")


def _check_optimizer(name: str) -> None:
    """Raise ConfigError if an optimizer's package is missing. Without this check, training fails at the first step."""
    for pattern, (module, package) in OPTIMIZERS.items():
        if re.fullmatch(pattern, name) and importlib.util.find_spec(module) is None:
            raise ConfigError(
                f"optim '{name}' comes from {package}, which is not installed; install it, or take adamw_torch"
            )


def check_model(model: ModelConfig) -> None:
    """Raise ConfigError for model settings with which the model cannot be loaded or trained."""
    if str(model.dtype) not in DTYPES:
        raise ConfigError(f"dtype is '{model.dtype}'; allowed: {', '.join(DTYPES)}")
    if model.lora_task_type != "CAUSAL_LM":
        raise ConfigError(f"lora_task_type is '{model.lora_task_type}'; only CAUSAL_LM models are trained")
    quantised = model.load_in_4bit or model.load_in_8bit
    if quantised and importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError(
            "4- and 8-bit weights are read by bitsandbytes, which is not installed; run `pip install bitsandbytes`, or "
            "remove load_in_4bit and load_in_8bit"
        )
    if model.use_peft:
        if model.lora_r < 1:
            raise ConfigError(f"lora_r is {model.lora_r}; it must be 1 or more")
        return
    if quantised:
        raise ConfigError("4- and 8-bit weights cannot be trained themselves; set use_peft: true")
    for field in dataclasses.fields(model):
        adapters_only = field.name.startswith("lora_") or field.name in ("use_rslora", "use_dora")
        # A resolved configuration always has lora_dropout.
        if adapters_only and field.name != "lora_dropout" and getattr(model, field.name) != field.default:
            raise ConfigError(f"'{field.name}' is set, but no adapter is trained; set use_peft: true or remove the key")
