"""Read an adapter's configuration so that nothing in it can run code, hang, or change more than the LoRA weights.

PEFT's configurations may name regular expressions (of exponential running time), Python libraries, initialisations that
rewrite the base, and layers to duplicate. Harmless keys are allowed one by one; any other
key must have PEFT's default.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_forget.core.errors import AdapterRefused
from llm_forget.models.adapters.safe_read import ADAPTER_CONFIG, MAX_CONFIG, read_strict_json

if TYPE_CHECKING:
    from peft import LoraConfig

MAX_RANK = 1024
MAX_NAMES = 10_000
# Of modules and parameters. As a regular expression, which PEFT makes of some, such a name takes linear time: no
# quantifiers, no groups.
_NAME = re.compile(r"[A-Za-z0-9_.\-]{1,256}")
ANYWHERE = r".*\."
# Metadata about the origin of the adapter; no effect on loading.
IGNORED = frozenset(
    {"base_model_name_or_path", "revision", "auto_mapping", "inference_mode", "peft_version", "runtime_config"}
    | {"megatron_core", "qalora_group_size", "loftq_config", "init_lora_weights", "peft_type"}
)


def _rank(value: Any) -> bool:
    return type(value) is int and 1 <= value <= MAX_RANK


def _number(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < 1e6 and math.isfinite(value)


def _names(value: Any) -> bool:
    return isinstance(value, list) and len(value) <= MAX_NAMES and all(map(_name, value))


def _name(value: Any) -> bool:
    return isinstance(value, str) and _NAME.fullmatch(value) is not None


def _layers(value: Any) -> bool:
    places = value if isinstance(value, list) else [value]
    return len(places) <= MAX_NAMES and all(type(place) is int and 0 <= place < MAX_NAMES for place in places)


def _mapping(each: Callable[[Any], bool]) -> Callable[[Any], bool]:
    def fits(value: Any) -> bool:
        # PEFT itself writes ".*\.gate_up_proj" for experts; one such beginning costs at most the square of a name.
        names = [key.removeprefix(ANYWHERE) for key in value] if isinstance(value, dict) else None
        return _names(names) and all(map(each, value.values()))

    return fits


# Key -> check of a value that is not null, and its description.
ALLOWED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "task_type": (lambda value: value == "CAUSAL_LM", "CAUSAL_LM"),
    "bias": (lambda value: value == "none", "none; biases are the base's own"),
    "r": (_rank, f"a rank between 1 and {MAX_RANK}"),
    "rank_pattern": (_mapping(_rank), f"plain module names with ranks between 1 and {MAX_RANK}"),
    "lora_alpha": (_number, "a number"),
    "alpha_pattern": (_mapping(_number), "plain module names with numbers"),
    "lora_dropout": (lambda value: _number(value) and value < 1, "a share below 1"),
    # PEFT would try a pattern on every module, in this process, without a limit of time.
    "target_modules": (_names, "a list of module names; a pattern is not tried: write out the names it matches"),
    "exclude_modules": (_names, "a list of module names; a pattern is not tried: write out the names it matches"),
    "target_parameters": (_names, "a list of parameter names"),
    "modules_to_save": (_names, "a list of module names"),
    "layers_to_transform": (_layers, "numbers of layers"),
    "layers_pattern": (lambda value: _name(value) or _names(value), "plain module names"),
    **dict.fromkeys(
        ("use_rslora", "use_dora", "lora_bias", "fan_in_fan_out", "ensure_weight_tying"),
        (lambda value: type(value) is bool, "true or false"),
    ),
}  # fmt: skip


def read_config(folder: Path) -> LoraConfig:
    """The LoRA configuration of an adapter folder, without its fields about the base.

    Raises:
        AdapterRefused: no LoRA, a value outside its bounds, or a key whose effect is not checked here; names the key.
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
            fits, words = ALLOWED[key]
            if value is not None and not fits(value):
                raise AdapterRefused(f"'{path}' gives {key} as something else than {words}")
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
    """PiSSA, OLoRA and the like rewrite the base when they are attached."""
    if fields.get("init_lora_weights", True) not in (True, False, None, "gaussian", "orthogonal"):
        raise AdapterRefused(
            f"'{path}' gives init_lora_weights that change the base itself; convert the adapter to plain LoRA with "
            "PEFT's path_initial_model_for_weight_conversion"
        )
