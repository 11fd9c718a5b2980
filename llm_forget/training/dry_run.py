"""Compute the plan of a run without loading weights: the token counts of its batches, and an estimate of its memory."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from heapq import nlargest
from itertools import takewhile
from typing import Any

import torch
from datasets import Dataset
from rich.console import Console
from rich.table import Table
from trl import ModelConfig

from llm_forget.core.ignore_label import IGNORE
from llm_forget.logprobs.fused_head import BLOCK_ON_CPU, BLOCK_ON_GPU
from llm_forget.models.adapters.lora import attach_adapter
from llm_forget.models.load import load_config, meta_model

BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0}
NF4, INT8 = 0.5 + 4 / 64, 1.0  # bytes per weight; nf4 has one float32 scale per 64 weights
FLOAT32 = 4.0
BACKWARD = 3  # number of tensors [tokens, intermediate] that the backward pass of a layer needs besides saved ones
LOGITS_KEPT = 6  # float32 copies of the logits at targets, if a term compares policy and reference
GIB = 2**30


@dataclass(frozen=True)
class Memory:
    """Estimated peak memory of one device in GiB.

    Activations and gradients do not exist at the same time, so only the larger of the two counts in the total.
    """

    weights: float
    trainable: float  # float32 weights of an adapter, and both AdamW moments of all trained weights
    activations: float
    logits: float
    gradients: float  # including temporary memory of the embeddings' backward pass and of the optimiser step

    @property
    def total(self) -> float:
        return self.weights + self.trainable + max(self.activations + self.logits, self.gradients)


@dataclass(frozen=True)
class Shape:
    """The sizes of a decoder that determine its memory. Weights are counted in elements."""

    layers: int
    hidden: int
    intermediate: int
    query: int  # heads x head size
    key: int  # key-value heads x head size
    vocabulary: int
    linear: int  # weights of linear layers except the head; only these are quantised
    others: int  # all other weights
    largest: int  # weights of the largest tensor
    adapter: int  # weights of the adapter
    ranks: int  # rank of the adapter, summed over all adapted modules


def batch_counts(splits: dict[str, Dataset], batch_size: int) -> dict[str, dict[str, int]]:
    """Return the counts of each split's largest possible batch: ``rows``, ``longest`` row, ``tokens``, ``targets``.

    A prefix that all rows of the batch share is computed only once. ``repeated`` is the number of tokens that this
    saves.
    """
    counts = {}
    for name, rows in splits.items():
        largest: list[list[int]] = []
        targets: list[int] = []
        for part in rows.select_columns(["input_ids", "labels"]).iter(batch_size=1000):
            largest = nlargest(batch_size, [*largest, *part["input_ids"]], key=len)
            targets = nlargest(batch_size, [*targets, *(sum(t != IGNORE for t in row) for row in part["labels"])])
        lengths = [len(row) for row in largest]
        common = len(list(takewhile(lambda column: len(set(column)) == 1, zip(*largest, strict=False))))
        counts[name] = {
            "rows": len(lengths), "longest": lengths[0], "tokens": sum(lengths), "targets": sum(targets),
            "repeated": common * (len(lengths) - 1),
        }  # fmt: skip
    return counts


def estimate_memory(
    model_args: ModelConfig,
    counts: dict[str, dict[str, int]],
    *,
    checkpointing: bool,
    keeps_logits: bool,
    autocast: bool = False,
    on_gpu: bool | None = None,
) -> Memory:
    """Estimate the peak memory of an AdamW step on the largest batch, with the fast paths of `logprobs.fast_paths`.

    The estimate counts the tensors that autograd saves for a decoder of the Llama family (RMSNorm, gated MLP, attention
    that saves no scores), as in arXiv:2205.05198.

    Args:
        counts: counts of one micro-batch, from `batch_counts`.
        checkpointing: whether gradient checkpointing is on.
        keeps_logits: whether a term needs the logits of policy and reference at target positions.
        autocast: whether matrix products are in half precision (``bf16`` or ``fp16``).
        on_gpu: whether training uses a GPU; None asks torch.
    """
    gpu = torch.cuda.is_available() if on_gpu is None else on_gpu
    shape = _shape(model_args)
    quantised = model_args.load_in_4bit or model_args.load_in_8bit
    lora = bool(model_args.use_peft)
    # If linear layers are quantised, all other weights are float32 (peft's prepare_model_for_kbit_training).
    width = FLOAT32 if quantised else _width(model_args)
    linear = NF4 if model_args.load_in_4bit else INT8 if model_args.load_in_8bit else width
    weights = shape.linear * linear + shape.others * width
    if autocast and not quantised and width == FLOAT32:
        weights += 2 * shape.linear  # copies in half precision, kept for the backward pass
    tokens = sum(count["tokens"] - count.get("repeated", 0) for count in counts.values())
    targets = sum(count["targets"] for count in counts.values())
    padded = sum(count["rows"] for count in counts.values()) * max(count["longest"] for count in counts.values())
    of_layer = _bytes_of_a_layer(shape, tokens, padded, width, lora, autocast)
    stream = tokens * shape.hidden * width
    layer_bytes = stream if checkpointing else of_layer
    step = BACKWARD * tokens * shape.intermediate * width
    activations = shape.layers * layer_bytes + (of_layer if checkpointing else 0) + 2 * stream
    head = _bytes_of_head(shape, targets, lora, keeps_logits, gpu)
    gradients = _gradients(shape, model_args)
    return Memory(
        weights=weights / GIB,
        trainable=gradients * (3 if lora else 2) / GIB,
        activations=(activations + (step if step > head else 0)) / GIB,
        logits=(head if head >= step else 0) / GIB,
        gradients=(gradients + (0 if lora else 2 * shape.largest * width)) / GIB,
    )


def per_device(memory: Memory, model_args: ModelConfig, config: str, processes: int) -> Memory:
    """Estimate the peak memory of each device under one of the shipped launch configurations.

    ``ddp`` has all tensors on every device, and a second copy of the gradients for their sum over the devices.
    ``zero2`` shards optimiser state and gradients. ``fsdp2`` and ``zero3`` also shard the weights, and each device
    gathers the weights of two layers and of the largest tensor at a time.
    """
    if config == "ddp":
        return replace(memory, trainable=memory.trainable + _gradients(_shape(model_args), model_args) / GIB)
    weights = memory.weights
    parts = {"trainable": memory.trainable / processes, "gradients": memory.gradients / processes}
    if config in ("fsdp2", "zero3"):
        shape = _shape(model_args)
        largest = shape.largest * _width(model_args) / GIB
        weights = weights / processes + min(weights, 2 * weights / shape.layers + largest) * (1 - 1 / processes)
    return replace(memory, weights=weights, **parts)


def launch_config(environment: Mapping[str, str]) -> str:
    """Return the name of the shipped launch configuration that accelerate's environment variables select."""
    if environment.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        return "fsdp2"
    if environment.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true":
        return f"zero{environment.get('ACCELERATE_DEEPSPEED_ZERO_STAGE', '2')}"
    return "ddp"


def depth(model_args: ModelConfig) -> int:
    """Return the number of decoder layers from the model's configuration."""
    return int(load_config(model_args).get_text_config().num_hidden_layers)


def _bytes_of_a_layer(shape: Shape, tokens: int, padded: int, width: float, lora: bool, autocast: bool) -> float:
    """Return the bytes that one layer saves for the backward pass. Only attention processes padding tokens."""
    hidden, inner = shape.hidden, shape.intermediate
    product = 2.0 if autocast else width
    norms = 2 * hidden * FLOAT32  # inputs
    if not lora:
        norms += 2 * hidden * width  # normalised, for the gradient of their scales
    gated = 3 * inner * product
    if lora and product < FLOAT32:
        # The adapter is float32, so each of its seven inputs is copied to float32; autocast copies it back.
        inputs = (5 * hidden + shape.query + inner) * (product if autocast else FLOAT32)
    else:
        inputs = (2 * hidden + inner) * product
    packed_again = shape.query * product if padded > tokens else 0.0
    attention = 2 * (shape.query + shape.key) * product
    ranks = shape.ranks / shape.layers * (product if autocast else FLOAT32)
    return tokens * (norms + gated + inputs + packed_again + ranks) + padded * attention


def _bytes_of_head(shape: Shape, targets: int, lora: bool, keeps_logits: bool, gpu: bool) -> float:
    if keeps_logits:
        return targets * shape.vocabulary * FLOAT32 * LOGITS_KEPT
    block = FLOAT32 * max(shape.vocabulary, BLOCK_ON_GPU if gpu else BLOCK_ON_CPU)
    block = min(block, FLOAT32 * targets * shape.vocabulary)
    return block + 2 * targets * shape.hidden * FLOAT32 + (0 if lora else 2 * shape.vocabulary * shape.hidden * FLOAT32)


def _gradients(shape: Shape, model_args: ModelConfig) -> float:
    """Return the bytes of all gradients. They are float32 for an adapter, otherwise of the dtype of the weights."""
    if model_args.use_peft:
        return shape.adapter * FLOAT32
    return (shape.linear + shape.others) * _width(model_args)


def _shape(model_args: ModelConfig) -> Shape:
    model = meta_model(model_args)
    config, head = model.config.get_text_config(), model.get_output_embeddings()
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    sizes = {id(p): p.numel() for p in model.parameters()}
    linear = sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not head)
    adapter, ranks = 0, 0
    if model_args.use_peft:
        with torch.device("meta"):
            model = attach_adapter(model, model_args)
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        adapter = sum(p.numel() for p in trained.values())
        ranks = sum(p.shape[0] for name, p in trained.items() if "lora_A" in name)
    return Shape(
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        intermediate=getattr(config, "intermediate_size", None) or 4 * config.hidden_size,
        query=heads * size,
        key=(getattr(config, "num_key_value_heads", None) or heads) * size,
        vocabulary=config.vocab_size,
        linear=linear,
        others=sum(sizes.values()) - linear,
        largest=max(sizes.values()),
        adapter=adapter,
        ranks=ranks,
    )


def _width(model_args: ModelConfig) -> float:
    """Return the bytes per weight in the dtype in which the model is loaded."""
    dtype = model_args.dtype
    if dtype in (None, "auto"):
        dtype = str(load_config(model_args).dtype or "float32").removeprefix("torch.")
    return BYTES[str(dtype)]


def show(counts: dict[str, dict[str, int]], sizes: dict[str, int], memory: Memory, settings: dict[str, Any]) -> None:
    """Print the plan of a run."""
    console = Console()
    table = Table("split", "rows", "rows per batch", "longest row", "tokens per batch", "target tokens per batch")
    for name, count in counts.items():
        table.add_row(name, f"{sizes[name]:,}", *(f"{count[k]:,}" for k in ("rows", "longest", "tokens", "targets")))
    console.print(table)
    for key, value in settings.items():
        console.print(f"{key}: {value}", highlight=False)
    console.print(
        f"estimated peak memory: {memory.total:.2f} GiB per device = weights {memory.weights:.2f} + optimiser "
        f"{memory.trainable:.2f} + the larger of activations {memory.activations:.2f} with logits {memory.logits:.2f}, "
        f"and gradients {memory.gradients:.2f}; the runtime itself needs more",
        highlight=False,
    )
    console.print("dry run: data and settings were checked; nothing was trained or written")
