"""Load a model by its name, quantised if wanted, and its tokenizer."""

from __future__ import annotations

import logging
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_forget.core.errors import MissingFileError, MissingPackageError, ModelError, library_errors
from llm_forget.models import demo_models
from llm_forget.models.adapters.lora import quantization_of
from llm_forget.models.digest import digests_by_layer
from llm_forget.models.model_source import Source, find_source, refuse_adapter_on_hub

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase
    from trl import ModelConfig

logger = logging.getLogger("llm_forget")
# bitsandbytes logs this for every 8-bit layer and call, between progress bars.
logging.getLogger("bitsandbytes.autograd._functions").addFilter(lambda entry: "will be cast" not in entry.getMessage())


@library_errors(ModelError, ValueError, OSError, ImportError)
def load_base(model_args: ModelConfig, *, device_map: Any = None, dequantize: bool = False) -> Any:
    """Load a causal language model in evaluation mode, without running code from the Hub.

    If the name refers to an adapter, or to a run with an adapter, return a frozen ``PeftModel`` with the adapters
    "target", "target-2" and so on, in the order of training. Otherwise return a ``PreTrainedModel``.

    Args:
        model_args: name and settings; the default dtype is float32. The base of a run has the revision that the run
            recorded.
        device_map: passed to transformers. For 4 or 8 bit, the default is the device of this process.
        dequantize: convert 4- or 8-bit weights to float32, so that an adapter can be merged into them.

    Raises:
        MissingFileError, ModelError: see `find_source`; also if an adapter was trained on another base.
        MissingPackageError: the model is a GGUF file, and the package gguf is not installed.
    """
    from llm_forget.models.adapters.files import load_adapter
    from llm_forget.models.adapters.verification import verify_adapter

    source = find_source(model_args.model_name_or_path)
    manifests = [verify_adapter(folder) for folder in source.adapters]  # before loading their base
    model = _load_weights(source, model_args, _options(model_args, device_map))
    quantization = quantization_of(model)
    if dequantize and quantization is not None:
        model = _dequantized(model)
    beneath = digests_by_layer(source, model_args.model_revision) if source.adapters else []
    for number, (folder, digest, manifest) in enumerate(zip(source.adapters, beneath, manifests, strict=False), 1):
        name = "target" if number == 1 else f"target-{number}"
        _warn_other_precision(folder, manifest, quantization)
        model = load_adapter(model, folder, name=name, base_digest=digest)
    return model.eval()


def _warn_other_precision(adapter: Path, manifest: dict[str, Any], quantization: dict[str, Any] | None) -> None:
    """Log a warning if the base has another precision than in the adapter's training, because its outputs differ."""
    trained, loaded = (_precision(settings) for settings in (manifest.get("quantization"), quantization))
    if "quantization" in manifest and trained != loaded:
        logger.warning(
            "adapter '%s' was trained on a base in %s and is loaded onto one in %s, which answers differently; "
            "set load_in_4bit or load_in_8bit as it was trained with, unless this is intended",
            adapter.parent.name if adapter.name == "adapter" else adapter.name, trained, loaded,
        )  # fmt: skip


def _precision(quantization: dict[str, Any] | None) -> str:
    settings = quantization or {}
    nested = " with nested scales" if settings.get("use_bnb_nested_quant") else ""
    kinds = {"load_in_4bit": f"4 bit ({settings.get('bnb_4bit_quant_type')}{nested})", "load_in_8bit": "8 bit"}
    method = str(settings.get("quant_method", "full precision"))
    return next((kind for key, kind in kinds.items() if settings.get(key)), method)


def load_config(model_args: ModelConfig) -> Any:
    """Return the model configuration for these arguments, without reading weights."""
    from transformers import AutoConfig

    source = find_source(model_args.model_name_or_path)
    if source.kind == "demo":
        return demo_models.demo_config()
    if source.kind == "gguf":
        return deepcopy(_gguf_config(source.location, Path(source.location).stat().st_mtime_ns))
    return AutoConfig.from_pretrained(source.location, revision=source.revision or model_args.model_revision)


@library_errors(ModelError, ValueError, OSError, ImportError)
def vocabulary_size(model_args: ModelConfig) -> int:
    """Return the number of logits of a model, without reading weights."""
    return int(load_config(model_args).get_text_config().vocab_size)


def meta_model(model_args: ModelConfig) -> Any:
    """Return the model of these arguments on the meta device, that is, without weights, to count its parameters."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(load_config(model_args))


def to_device(model: Any) -> Any:
    """Move a model to the device of this process, and return it. A quantised model is already there, and stays."""
    from accelerate import PartialState

    return model if getattr(model, "is_quantized", False) else model.to(PartialState().device)


@cache  # reading takes seconds; `changed` is the modification time, so that a changed file is read again
def _gguf_config(location: str, changed: int) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(str(Path(location).parent), gguf_file=Path(location).name)


def _load_weights(source: Source, model_args: ModelConfig, options: dict[str, Any]) -> Any:
    from transformers import AutoModelForCausalLM

    if source.kind in ("demo", "gguf"):
        quantization = options.pop("quantization_config", None)
        model = _demo(model_args) if source.kind == "demo" else _gguf(source, options)
        if quantization is not None:
            model = _quantize(model, quantization, options)
    else:
        revision = source.revision or model_args.model_revision
        if source.kind == "hub":
            refuse_adapter_on_hub(source.location, revision)
        model = AutoModelForCausalLM.from_pretrained(
            source.location, revision=revision, use_safetensors=True, **options
        )
    model.name_or_path = model.config._name_or_path = source.name if not source.adapters else source.location
    # This includes folders that already hold 4- or 8-bit weights.
    if {"load_in_4bit", "load_in_8bit"} & (quantization_of(model) or {}).keys():
        model = _prepare_quantized(model)
    return model


def _options(model_args: ModelConfig, device_map: Any) -> dict[str, Any]:
    from accelerate import PartialState
    from trl import get_quantization_config

    options: dict[str, Any] = {"dtype": model_args.dtype, "trust_remote_code": False}
    if model_args.attn_implementation is not None:
        options["attn_implementation"] = model_args.attn_implementation
    quantization = get_quantization_config(model_args)
    if quantization is not None:
        options["quantization_config"] = quantization
        # Quantised weights cannot be moved after loading.
        device_map = device_map if device_map is not None else {"": PartialState().device}
    if device_map is not None:
        options["device_map"] = device_map
    return options


def _demo(model_args: ModelConfig) -> Any:
    import torch

    model = demo_models.demo_model(model_args.attn_implementation)
    if model_args.dtype not in (None, "auto"):
        model = model.to(getattr(torch, model_args.dtype))
        model.config.dtype = model.dtype
    return model


def _gguf(source: Source, options: dict[str, Any]) -> Any:
    from transformers import AutoModelForCausalLM

    path = _gguf_path(source)
    _warn_unread(path)
    model: Any = AutoModelForCausalLM.from_pretrained(str(path.parent), gguf_file=path.name, **options)
    # The weights are ordinary tensors now. transformers refuses to save or train a model that is marked as quantised.
    del model.config.quantization_config
    del model.hf_quantizer, model.quantization_method
    model.is_quantized = False
    model.config._name_or_path = source.name
    return model


def _warn_unread(path: Path) -> None:
    """Log a warning about tensors and settings of a GGUF file that llama.cpp uses but transformers ignores."""
    head, names = _read_head(path)
    kind = head["general.architecture"]
    unread = [name for name in names if name.startswith(("rope_freqs.", "rope_factors"))]
    if kind == "llama":
        unread += [name for name in names if name.endswith(".bias")]
    if head.get(f"{kind}.rope.scaling.type", "none") != "none" and kind != "gpt-oss":
        unread.append(f"{kind}.rope.scaling.type")
    if unread:
        logger.warning(
            "'%s' holds %s%s, which transformers does not read: llama.cpp answers differently",
            path.name, unread[0], f" and {len(unread) - 1} more" if len(unread) > 1 else "",
        )  # fmt: skip


def _gguf_path(source: Source) -> Path:
    import importlib.util

    if importlib.util.find_spec("gguf") is None:
        raise MissingPackageError(
            f"'{source.name}' is read by the package gguf, which is not installed; run "
            '`pip install "llm-forget[gguf]"`'
        )
    _read_head(Path(source.location))
    return Path(source.location)


def _read_head(path: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return (metadata, tensor names) of a GGUF file. Raise ModelError if the file is damaged."""
    import struct

    from transformers.integrations.gguf import read_gguf_metadata

    try:
        return read_gguf_metadata(str(path))
    except (struct.error, UnicodeDecodeError, OverflowError) as error:
        raise ModelError(f"GGUF file '{path}' is cut off or damaged: its head cannot be read; get it again") from error


def _quantize(model: Any, quantization: Any, options: dict[str, Any]) -> Any:
    """Return a demo or GGUF model in 4 or 8 bit: save it to a temporary folder, and load it from there quantised."""
    import tempfile

    with tempfile.TemporaryDirectory(prefix="llm-forget-") as folder:
        model.save_pretrained(folder)
        model_class = type(model)
        del model
        return model_class.from_pretrained(folder, quantization_config=quantization, **options)


def _prepare_quantized(model: Any) -> Any:
    """Cast unquantised modules to float32, and prevent that bitsandbytes repacks 4-bit weights. Return the model.

    On CPUs with AVX512-BF16, bitsandbytes repacks 4-bit weights in a forward pass without gradient. Repacked layers
    compute in bfloat16, have no gradient, and are dequantised to wrong values.
    """
    import bitsandbytes
    from peft import prepare_model_for_kbit_training

    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False
    return prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)


def _dequantized(model: Any) -> Any:
    """Return the model with quantised weights converted to float32. It can be saved like an unquantised model."""
    import torch

    model = model.dequantize(dtype=torch.float32)
    # If the folder held packed weights, transformers keeps their conversions, and would pack them again when saving.
    used = getattr(model, "_weight_conversions", None) or []
    packed = [c for c in used if any("Deserialize" in type(o).__name__ for o in getattr(c, "operations", []))]
    if packed:
        model._weight_conversions = [conversion for conversion in used if conversion not in packed] or None
    return model


@library_errors(ModelError, ValueError, OSError, ImportError)
def load_tokenizer(model_args: ModelConfig) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model. It pads on the right, with the end-of-sequence token if there is no pad token.

    Raise MissingFileError or ModelError as `find_source` does, and ModelError if neither of the two tokens exists.
    """
    source = find_source(model_args.model_name_or_path)
    tokenizer = _tokenizer(source, source.revision or model_args.model_revision)
    tokenizer.padding_side = "right"
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise ModelError(f"the tokenizer of '{source.name}' has no pad and no eos token; set one in its files")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _tokenizer(source: Source, revision: str) -> Any:
    from transformers import AutoTokenizer

    for folder in source.tokenizer_folders:
        if (folder / "tokenizer_config.json").is_file():
            return AutoTokenizer.from_pretrained(str(folder))
    if source.kind == "demo":
        return demo_models.demo_tokenizer()
    if source.kind == "gguf":
        return _gguf_tokenizer(_gguf_path(source))
    try:
        return AutoTokenizer.from_pretrained(source.location, revision=revision, trust_remote_code=False)
    except OSError as error:
        if source.kind != "hub":
            raise
        # A mistyped path of two parts looks like a Hub id; it fails here, since the tokenizer is read before the model.
        reason = str(error).partition("\n")[0]
        raise MissingFileError(f"model '{source.name}' is neither a folder here nor on the hub: {reason}") from error


def _gguf_tokenizer(path: Path) -> Any:
    """Load the tokenizer of a GGUF file. A tokenizer.json in its folder, which transformers would load, is ignored."""
    import tempfile

    from transformers import AutoTokenizer

    if not (path.parent / "tokenizer.json").is_file():
        return AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
    with tempfile.TemporaryDirectory(prefix="llm-forget-") as folder:
        (Path(folder) / path.name).symlink_to(path.resolve())
        return AutoTokenizer.from_pretrained(folder, gguf_file=path.name)
