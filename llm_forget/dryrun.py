"""What a run would do, without weights: one batch in token counts, and the memory it would take."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from rich.console import Console
from rich.table import Table
from trl import ModelConfig

from llm_forget.logprobs import IGNORE
from llm_forget.models import attach_adapter, builtin, find_source

BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "auto": 2.0}
NF4, INT8 = 0.5 + 4 / 64, 1.0  # bytes a weight; nf4 keeps one float32 scale for every 64


@dataclass(frozen=True)
class Memory:
    """Estimated peak of one device, GiB."""

    weights: float
    trainable: float  # float32 values, gradients and both AdamW moments
    activations: float
    logits: float

    @property
    def total(self) -> float:
        return self.weights + self.trainable + self.activations + self.logits


def batch_counts(splits: dict[str, Dataset], batch_size: int) -> dict[str, dict[str, int]]:
    """Rows, tokens, target tokens and the longest row of the largest batch that each split can give."""
    counts = {}
    for name, rows in splits.items():
        lengths = sorted((len(ids) for ids in rows["input_ids"]), reverse=True)[:batch_size]
        targets = sorted((sum(t != IGNORE for t in labels) for labels in rows["labels"]), reverse=True)[:batch_size]
        counts[name] = {"rows": len(lengths), "longest": lengths[0], "tokens": sum(lengths), "targets": sum(targets)}
    return counts


def estimate_memory(
    model_args: ModelConfig, counts: dict[str, dict[str, int]], *, checkpointing: bool, keeps_logits: bool
) -> Memory:
    """Peak of a training step by the arithmetic of arXiv:2205.05198, for the largest batch, padded.

    Activations of a layer take 34 bytes a token and hidden unit at 2-byte precision (attention scores are not kept by
    SDPA), with gradient checkpointing the layer's input alone. Logits exist at target positions only: float32, their
    gradient and one working copy, and as many again where a term keeps them for policy and reference.
    """
    model = _empty_model(model_args)
    config = model.config.get_text_config()
    parameters = sum(p.numel() for p in model.parameters())
    width = BYTES.get(str(model_args.dtype), 4.0)
    per_weight = NF4 if model_args.load_in_4bit else INT8 if model_args.load_in_8bit else width
    if model_args.use_peft:
        with torch.device("meta"):
            model = attach_adapter(model, model_args)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    tokens = sum(c["rows"] for c in counts.values()) * max(c["longest"] for c in counts.values())
    targets = sum(c["targets"] for c in counts.values())
    per_layer = config.hidden_size * (1 if checkpointing else 17) * width
    layers = config.num_hidden_layers * per_layer + (17 * width * config.hidden_size if checkpointing else 0)
    frozen = parameters * per_weight if model_args.use_peft else parameters * width
    optimiser = trainable * (16 if model_args.use_peft else 12)
    gib = 2**30
    return Memory(
        weights=frozen / gib,
        trainable=optimiser / gib,
        activations=tokens * layers / gib,
        logits=targets * config.vocab_size * 4 * (6 if keeps_logits else 3) / gib,
    )


def depth(model_args: ModelConfig) -> int:
    """Decoder layers of the model."""
    return int(_empty_model(model_args).config.get_text_config().num_hidden_layers)


def _empty_model(model_args: ModelConfig) -> Any:
    """The architecture without weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    source = find_source(model_args.model_name_or_path)
    if source.kind == "demo":
        config = builtin.demo_config()
    elif source.kind == "gguf":
        file = Path(source.location)
        config = AutoConfig.from_pretrained(str(file.parent), gguf_file=file.name)
    else:
        config = AutoConfig.from_pretrained(source.location, revision=model_args.model_revision)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def show(counts: dict[str, dict[str, int]], sizes: dict[str, int], memory: Memory, settings: dict[str, Any]) -> None:
    """Print the plan of a run."""
    console = Console()
    table = Table("split", "rows", "rows a batch", "longest row", "tokens a batch", "target tokens a batch")
    for name, count in counts.items():
        table.add_row(name, f"{sizes[name]:,}", *(f"{count[k]:,}" for k in ("rows", "longest", "tokens", "targets")))
    console.print(table)
    for key, value in settings.items():
        console.print(f"{key}: {value}", highlight=False)
    console.print(
        f"estimated peak memory: {memory.total:.2f} GiB a device = weights {memory.weights:.2f} + adapter or trained "
        f"weights with optimiser {memory.trainable:.2f} + activations {memory.activations:.2f} + logits "
        f"{memory.logits:.2f} (without the runtime's own)",
        highlight=False,
    )
    console.print("dry run: everything was read and checked; nothing was trained or written")
