"""Read a LoRA configuration that is not trusted. It must not run code, hang, or change other weights than LoRA's.

A PEFT configuration may contain slow regular expressions, names of Python libraries, initialisations that change the
base, and layers to duplicate. Only keys that are known to be harmless may differ from PEFT's default.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from msgspec import Meta

from llm_forget.core.errors import AdapterRefused
from llm_forget.models.adapters.safe_read import ADAPTER_CONFIG, MAX_CONFIG, read_strict_json

if TYPE_CHECKING:
    from peft import LoraConfig

MAX_RANK = 1024
MAX_NAMES = 10_000
# Names of modules and parameters. PEFT uses some of them as regular expressions. Without quantifiers and groups, a
# match takes linear time.
NAME = r"[A-Za-z0-9_.\-]{1,256}\Z"
Name = Annotated[str, Meta(pattern=f"^{NAME}")]
Names = Annotated[list[Name], Meta(max_length=MAX_NAMES)]
# PEFT itself writes ".*\.gate_up_proj" for experts; one such prefix takes at most quadratic time.
Suffix = Annotated[str, Meta(pattern=rf"^(\.\*\\\.)?{NAME}")]
Rank = Annotated[int, Meta(ge=1, le=MAX_RANK)]
Number = Annotated[float, Meta(ge=0, lt=1e6)]
Layer = Annotated[int, Meta(ge=0, lt=MAX_NAMES)]
# Metadata about the origin of the adapter; no effect on loading.
IGNORED = frozenset(
    {"base_model_name_or_path", "revision", "auto_mapping", "inference_mode", "peft_version", "runtime_config"}
    | {"megatron_core", "qalora_group_size", "loftq_config", "init_lora_weights", "peft_type"}
)
# Keys whose value is a list or a single entry. A union type would crash msgspec 0.22, because it has a pattern.
ONE_OR_MORE = ("layers_to_transform", "layers_pattern")
# Key -> type of a value that is not null, and its description.
ALLOWED: dict[str, tuple[Any, str]] = {
    "task_type": (Literal["CAUSAL_LM"], "CAUSAL_LM"),
    "bias": (Literal["none"], "none; biases are the base's own"),
    "r": (Rank, f"a rank between 1 and {MAX_RANK}"),
    "rank_pattern": (
        Annotated[dict[Suffix, Rank], Meta(max_length=MAX_NAMES)],
        f"plain module names with ranks between 1 and {MAX_RANK}",
    ),
    "lora_alpha": (Number, "a number"),
    "alpha_pattern": (Annotated[dict[Suffix, Number], Meta(max_length=MAX_NAMES)], "plain module names with numbers"),
    "lora_dropout": (Annotated[float, Meta(ge=0, lt=1)], "a share below 1"),
    # PEFT would match a pattern against every module, without a time limit.
    "target_modules": (Names, "a list of module names; a pattern is not tried: write out the names it matches"),
    "exclude_modules": (Names, "a list of module names; a pattern is not tried: write out the names it matches"),
    "target_parameters": (Names, "a list of parameter names"),
    "modules_to_save": (Names, "a list of module names"),
    "layers_to_transform": (Annotated[list[Layer], Meta(max_length=MAX_NAMES)], "numbers of layers"),
    "layers_pattern": (Names, "plain module names"),
    **dict.fromkeys(
        ("use_rslora", "use_dora", "lora_bias", "fan_in_fan_out", "ensure_weight_tying"), (bool, "true or false")
    ),
}


def read_config(folder: Path) -> LoraConfig:
    """Return the LoRA configuration of an adapter folder, without its fields about the base.

    Raise AdapterRefused, with the name of the key, for methods other than LoRA, values out of bounds, and unknown keys.
    """
    from peft import LoraConfig

    path = folder / ADAPTER_CONFIG
    fields = read_strict_json(path, MAX_CONFIG)
    if fields.get("peft_type") != "LORA":
        raise AdapterRefused(f"'{path}' is of type {str(fields.get('peft_type'))[:40]!a}; only LORA is supported")
    _refuse_other_starts(fields, path)
    settings = {}
    for key, value in fields.items():
        if key in ALLOWED:
            kind, words = ALLOWED[key]
            alone = key in ONE_OR_MORE and value is not None and not isinstance(value, list)
            try:
                msgspec.convert([value] if alone else value, kind | None)
            except msgspec.ValidationError:
                raise AdapterRefused(f"'{path}' gives {key} as something else than {words}") from None
            settings[key] = value
        elif key not in IGNORED and value not in (None, False, {}, []):
            raise AdapterRefused(f"'{path}' sets {key[:60]!a}, whose effect is not checked; only plain LoRA is loaded")
    if not settings.get("r"):
        raise AdapterRefused(f"'{path}' says no rank; it must be between 1 and {MAX_RANK}")
    if not settings.get("target_modules") and not settings.get("target_parameters"):
        raise AdapterRefused(f"'{path}' names no target_modules; list the modules that are adapted")
    field_names = {field.name for field in dataclasses.fields(LoraConfig)}
    return LoraConfig(**{key: value for key, value in settings.items() if key in field_names and value is not None})


def _refuse_other_starts(fields: dict[str, Any], path: Path) -> None:
    """Raise AdapterRefused for PiSSA, OLoRA and other initialisations that change the base weights."""
    if fields.get("init_lora_weights", True) not in (True, False, None, "gaussian", "orthogonal"):
        raise AdapterRefused(
            f"'{path}' gives init_lora_weights that change the base itself; convert the adapter to plain LoRA with "
            "PEFT's path_initial_model_for_weight_conversion"
        )
