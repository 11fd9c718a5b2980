"""Writes the tables of accelerate_configs/README.md from the formula of `--dry_run`.

python tests/measure/memory_table.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from transformers import LlamaConfig
from trl import ModelConfig

from llm_forget.training import dry_run

README = Path(__file__).parents[2] / "accelerate_configs" / "README.md"
BEGIN, END = "<!-- from tests/measure/memory_table.py -->", "<!-- end of the table -->"
# The shapes of Llama 3.2 1B, Llama 3.1 8B and Llama 3.1 70B.
MODELS: dict[str, dict[str, Any]] = {
    "1B": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32},
    "8B": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32},
    "70B": {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64},
}
HOW: dict[str, dict[str, Any]] = {
    "LoRA": {"use_peft": True, "dtype": "bfloat16"},
    "QLoRA": {"use_peft": True, "dtype": "bfloat16", "load_in_4bit": True},
    "full": {"use_peft": False, "dtype": "float32"},
}
ROWS, LENGTH, TARGETS = 4, 512, 256
SIZES = (24, 80)
FREE = 0.9  # of a device: the rest is for CUDA itself, NCCL and fragments


def arguments(model: str, how: str, folder: Path) -> ModelConfig:
    location = folder / model
    if not location.exists():
        shape = {**MODELS[model], "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": model == "1B"}
        LlamaConfig(**shape).save_pretrained(location)
        (location / "model.safetensors").touch()  # no weights are read, but a folder without any is refused
    return ModelConfig(model_name_or_path=str(location), lora_r=16, lora_alpha=32, lora_dropout=0.0, **HOW[how])


def estimate(model_args: ModelConfig, rows: int = ROWS, checkpointing: bool = True) -> dry_run.Memory:
    one = {"rows": rows, "longest": LENGTH, "tokens": rows * LENGTH, "targets": rows * TARGETS}
    counts = {"forget": one, "retain": one}
    return dry_run.estimate_memory(
        model_args, counts, checkpointing=checkpointing, keeps_logits=False, autocast=True, on_gpu=True
    )


def choice(model_args: ModelConfig, size: int) -> str:
    """The smallest launch configuration that fits into devices of ``size`` GiB."""
    memory, room = estimate(model_args), FREE * size
    if memory.total <= room:
        return "single_gpu"
    if model_args.load_in_4bit:
        return "none"  # weights of bitsandbytes are not cut up
    for processes in (2, 4, 8, 16, 32):
        if dry_run.per_device(memory, model_args, "fsdp2", processes).total <= room:
            return f"{processes} x fsdp2"
    return "more than 32 x fsdp2"


def bytes_a_token(model_args: ModelConfig, checkpointing: bool) -> float:
    """KiB that another token of a batch costs."""
    less, more = (estimate(model_args, rows, checkpointing) for rows in (64, 128))
    return (more.activations + more.logits - less.activations - less.logits) * 2**20 / (2 * 64 * LENGTH)


def tables(models: tuple[str, ...] = tuple(MODELS)) -> str:
    lines = ["| model | how | weights | optimiser | activations, head | gradients | in all |"]
    lines[0] += "".join(f" {size} GiB |" for size in SIZES)
    tokens = ["| model | how | all kept | with gradient checkpointing |", "| --- | --- | --- | --- |"]
    lines.append("| --- " * (7 + len(SIZES)) + "|")
    with tempfile.TemporaryDirectory() as folder:
        for model in models:
            for how in HOW:
                args = arguments(model, how, Path(folder))
                memory = estimate(args)
                parts = (memory.weights, memory.trainable, memory.activations + memory.logits, memory.gradients)
                numbers = " | ".join(f"{part:.1f}" for part in (*parts, memory.total))
                fits = " | ".join(choice(args, size) for size in SIZES)
                lines.append(f"| {model} | {how} | {numbers} | {fits} |")
                costs = " | ".join(f"{bytes_a_token(args, kept):.0f}" for kept in (False, True))
                tokens.append(f"| {model} | {how} | {costs} |")
    first = f"GiB of one GPU, for {ROWS} + {ROWS} rows of {LENGTH} tokens with gradient checkpointing:"
    second = "KiB that one more token of a batch costs:"
    return "\n\n".join([BEGIN, first, "\n".join(lines), second, "\n".join(tokens), END])


def main() -> None:
    before, _, rest = README.read_text().partition(BEGIN)
    README.write_text(before + tables() + rest.partition(END)[2])


if __name__ == "__main__":
    main()
