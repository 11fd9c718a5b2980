"""Write a model as one GGUF file, and verify that loading the file gives the same model.

Names, layouts and keys follow llama.cpp's ``convert_hf_to_gguf.py``. Its package ``gguf`` quantises the weights. Only
architectures that transformers can load from GGUF are supported, because each file is loaded again to verify it.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from llm_forget.core.errors import ModelError
from llm_forget.models.exporting.gguf_tokenizer import describe_tokenizer

if TYPE_CHECKING:
    from trl import ModelConfig

# Type of most weights; vectors stay in float32. The package `gguf` reads K-quants but cannot write them.
FORMS = {f"gguf-{name}": name.upper() for name in ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")}
ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}  # transformers: llama.cpp
HEADS_INTERLEAVED = ("llama",)  # RoPE pairs neighbouring elements in llama.cpp, and both halves in transformers
ENDS = ("token_embd.weight", "output.weight")
# Configuration keys that determine the outputs, under transformers' names.
SIZES = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size",
    "max_position_embeddings", "tie_word_embeddings", "hidden_act",
)  # fmt: skip
ELSEWHERE = (
    "convert the folder with llama.cpp's convert_hf_to_gguf.py; `llm-forget evaluate FILE.gguf` measures what it writes"
)


@dataclass(frozen=True)
class _Tensor:
    """One tensor of the file. `_packed_bytes` quantises ``weight`` for the file, and rounds it to the same values."""

    name: str
    weight: Tensor
    kind: Any  # gguf.GGMLQuantizationType
    heads: int | None  # number of heads, if their rows are interleaved


def refuse_architecture(config: Any, name: str) -> None:
    """Raise ModelError if a model of this configuration would change when transformers loads it from a GGUF file."""
    if config.model_type not in ARCHITECTURES:
        supported = ", ".join(ARCHITECTURES)
        raise ModelError(f"'{name}' is a {config.model_type}; GGUF export supports {supported}; {ELSEWHERE}")
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type", "default") != "default":
        lost = f"position scaling '{rope['rope_type']}'"
    elif _slides(config):
        lost = "sliding-window attention"
    elif any(getattr(config, key, False) for key in ("attention_bias", "mlp_bias")):
        lost = "biases of attention or feed-forward layers"
    elif config.model_type == "qwen3" and config.head_dim != 128:
        lost = f"heads of {config.head_dim} dimensions (qwen3 has 128)"
    else:
        return
    raise ModelError(
        f"'{name}' has {lost}, which transformers does not read back from GGUF, so that nothing here could measure the "
        "file; convert the folder with llama.cpp's convert_hf_to_gguf.py, and measure where llama.cpp runs it"
    )


def _slides(config: Any) -> bool:
    if config.model_type == "mistral":
        return config.sliding_window is not None and config.sliding_window < config.max_position_embeddings
    return "sliding_attention" in (getattr(config, "layer_types", None) or ())


def write_gguf(
    model: Any, tokenizer: Any, path: Path, form: str, *, advance: Callable[[int], None] = lambda _: None
) -> dict[str, Any]:
    """Write an unquantised model to a GGUF file, and round its weights in memory to the values in the file.

    ``form`` is one of `FORMS`. ``advance`` is called after each tensor with its number of weights. Return a dictionary
    with the number of tensors of each ggml type (``tensors``) and a summary of the tokenizer (``tokenizer``).

    Raises:
        ModelError: see `refuse_architecture`, `describe_tokenizer`; also if a weight exceeds the range of the form.
        OSError: the disk is full. A partial file remains.
    """
    from gguf import GGUFWriter, quant_shape_to_byte_shape

    refuse_architecture(model.config, path.name)
    described = describe_tokenizer(tokenizer, model.config.vocab_size)
    tensors = list(_tensors(model, FORMS[form]))
    writer = GGUFWriter(path, ARCHITECTURES[model.config.model_type])
    try:
        _add_metadata(writer, model.config, form)
        described.add_to(writer)
        for tensor in tensors:
            shape = tuple(tensor.weight.shape)
            size = int(np.prod(quant_shape_to_byte_shape(shape, tensor.kind), dtype=np.int64))
            writer.add_tensor_info(tensor.name, shape, np.dtype(np.float32), size, raw_dtype=tensor.kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        file = next(iter(writer.fout or ()))
        for tensor in tensors:
            data = _packed_bytes(tensor)
            # Not `write_tensor_data`: NumPy's writer hides the cause of a disk error.
            writer.write_padding(file, file.tell())
            file.write(data.tobytes())
            writer.write_padding(file, data.nbytes)
            advance(tensor.weight.numel())
        file.flush()
        os.fsync(file.fileno())
    finally:
        for open_file in writer.fout or ():
            open_file.close()
    kinds = Counter(tensor.kind.name for tensor in tensors)
    return {"tensors": dict(sorted(kinds.items())), "tokenizer": described.summary()}


def _tensors(model: Any, kind: str) -> Iterator[_Tensor]:
    """Yield all tensors of a model in a fixed order, under llama.cpp's names."""
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    config = model.config
    architecture = ARCHITECTURES[config.model_type]
    number = next(key for key, value in MODEL_ARCH_NAMES.items() if value == architecture)
    names = get_tensor_name_map(number, config.num_hidden_layers)
    for hf_name, weight in model.state_dict().items():
        if hf_name == "lm_head.weight" and config.tie_word_embeddings:
            continue  # readers tie the embeddings if the file has no head
        name = names.get_name(hf_name, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise ModelError(f"llama.cpp's {architecture} has no tensor for '{hf_name}'; {ELSEWHERE}")
        heads = None
        if architecture in HEADS_INTERLEAVED and ".attn_q." in name:
            heads = config.num_attention_heads
        elif architecture in HEADS_INTERLEAVED and ".attn_k." in name:
            heads = config.num_key_value_heads
        yield _Tensor(name, weight, _kind(name, weight, kind), heads)


def _kind(name: str, weight: Tensor, default: str) -> Any:
    """Return the ggml type of a tensor, as llama.cpp chooses it.

    It is float32 for vectors, 8 bit or more for embeddings and head, float16 if the row length is not a multiple of the
    block size, and ``default`` for all other tensors.
    """
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    if weight.dim() < 2:
        return GGMLQuantizationType.F32
    kind = GGMLQuantizationType[default]
    if name in ENDS and default.startswith(("Q4", "Q5")):
        kind = GGMLQuantizationType.Q8_0
    block, _ = GGML_QUANT_SIZES[kind]
    return kind if weight.shape[-1] % block == 0 else GGMLQuantizationType.F16


def _packed_bytes(tensor: _Tensor) -> Any:
    """Return the quantised bytes of a tensor, and set the model's weight to the dequantised values.

    In the bytes, the two halves of each head are interleaved if the architecture needs this (`HEADS_INTERLEAVED`).
    """
    from gguf.quants import dequantize, quantize

    weight = tensor.weight.detach()
    with np.errstate(over="ignore"):  # checked below
        packed = quantize(weight.float().cpu().numpy(), tensor.kind)  # [rows, numbers or bytes], or [numbers]
    rounded = torch.from_numpy(np.array(dequantize(packed, tensor.kind), copy=True))
    if not torch.isfinite(rounded).all():
        raise ModelError(f"tensor '{tensor.name}' exceeds the range of {tensor.kind.name}; take gguf-bf16 or gguf-f32")
    weight.copy_(rounded.reshape(weight.shape))
    if tensor.heads is None:
        return packed
    halves = packed.reshape(tensor.heads, 2, -1, *packed.shape[1:])  # [heads, half, dimension of a half, ...]
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(packed.shape))


def _add_metadata(writer: Any, config: Any, form: str) -> None:
    """Write sizes and position settings, without names of folders or machines."""
    from gguf import GGML_QUANT_VERSION, GGUFType, LlamaFileType

    kind = FORMS[form]
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    writer.add_type(GGUFType.MODEL)
    writer.add_file_type(LlamaFileType[f"{'ALL' if kind == 'F32' else 'MOSTLY'}_{kind}"])
    writer.add_quantization_version(GGML_QUANT_VERSION)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_rope_dimension_count(width)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)


def read_gguf(path: Path, base_args: ModelConfig, config: Any) -> Any:
    """Load a written file as `evaluate` does, and return the model. Raise ModelError if its configuration differs."""
    import dataclasses

    from transformers import AutoConfig

    from llm_forget.models.load import load_base

    back = AutoConfig.from_pretrained(str(path.parent), gguf_file=path.name)
    lost = [key for key in SIZES if getattr(back, key) != getattr(config, key)]
    pairs = {
        "rms_norm_eps": (back.rms_norm_eps, config.rms_norm_eps),
        "rope_theta": (back.rope_parameters["rope_theta"], config.rope_parameters["rope_theta"]),
    }
    lost += [key for key, (read, expected) in pairs.items() if not np.isclose(read, expected, rtol=1e-6, atol=0.0)]
    if lost:
        raise ModelError(f"transformers reads {', '.join(lost)} back from GGUF with other values; {ELSEWHERE}")
    return load_base(dataclasses.replace(base_args, model_name_or_path=str(path)))
