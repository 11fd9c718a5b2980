"""Models: loaded from anywhere, adapted by LoRA, saved, merged; never two copies in memory."""

from llm_forget.models.adapters.files import (
    adapter_state_dict,
    load_adapter,
    load_adapter_state,
    load_adapter_weights,
    save_adapter,
    verify_adapter,
)
from llm_forget.models.adapters.logit_fingerprint import effect_of
from llm_forget.models.adapters.lora import (
    ADAPTER,
    attach_adapter,
    frozen_adapters,
    prepare_gradient_checkpointing,
    quantization_of,
    reference_mode,
)
from llm_forget.models.digest import source_digest
from llm_forget.models.load import load_base, load_tokenizer
from llm_forget.models.merging.full_model import merge_adapter, merge_adapters
from llm_forget.models.model_source import Source, find_source

__all__ = [
    "ADAPTER",
    "Source",
    "adapter_state_dict",
    "attach_adapter",
    "effect_of",
    "find_source",
    "frozen_adapters",
    "load_adapter",
    "load_adapter_state",
    "load_adapter_weights",
    "load_base",
    "load_tokenizer",
    "merge_adapter",
    "merge_adapters",
    "prepare_gradient_checkpointing",
    "quantization_of",
    "reference_mode",
    "save_adapter",
    "source_digest",
    "verify_adapter",
]
