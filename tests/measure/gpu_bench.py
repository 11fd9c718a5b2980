"""What a step costs on a GPU, on models of the shapes of Llama-3.2-1B and Llama-3.1-8B; by hand, not by pytest.

    python tests/measure/gpu_bench.py FOLDER [SHAPE...]         (default: 1b 8b)

Random weights, which are as fast as trained ones, and rows of made-up words of 60 to 500 tokens. `llm-forget bench` for
each shape with LoRA (beside the naive implementation) and with QLoRA; FOLDER gets one JSON file for each, and the last
lines compare: speed and peak memory, ours to naive, and QLoRA's memory to naive LoRA's. Exit code 1 where neither is
what it is meant to be. Nothing is downloaded.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from llm_forget.bench.bench import bench
from llm_forget.models import demo_models

SHAPES: dict[str, dict[str, Any]] = {
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "tie_word_embeddings": True},
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "tie_word_embeddings": False},
    # To try this script itself where there is no GPU.
    "tiny": {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "tie_word_embeddings": True},
}
LLAMA_3 = {"vocab_size": 128256, "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 4096}
SMALL = {"vocab_size": 2048, "num_attention_heads": 4, "num_key_value_heads": 2}
METHODS = ("npo", "grad_diff", "simnpo", "npo_kl")
FASTER, SMALLER = 3.0, 0.35  # ours to naive: speed at least, or else memory at most


def write_model(shape: str, folder: Path, dtype: torch.dtype) -> None:
    """Random weights of a shape, made on the GPU where there is one, with the demo's tokenizer."""
    config = LlamaConfig(**{**SHAPES[shape], **(SMALL if shape == "tiny" else LLAMA_3)})
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = LlamaForCausalLM._from_config(config, dtype=dtype)
    model.save_pretrained(folder)
    demo_models.demo_tokenizer().save_pretrained(folder)


def write_rows(folder: Path, longest: int) -> None:
    """Questions and answers of made-up words, whose lengths differ as those of real rows do."""
    drawn = random.Random(0)

    def words(count: int) -> str:
        return " ".join(drawn.choice(("river", "stone", "lamp", "garden", "winter", "glass")) for _ in range(count))

    for split in ("forget", "retain"):
        rows = [
            {"id": f"{split}-{i}", "prompt": words(10), "completion": words(drawn.randint(longest // 8, longest))}
            for i in range(64)
        ]
        (folder / f"{split}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")


def measured(shape: str, folder: Path, *, quantised: bool, output: Path) -> dict[str, Any]:
    """`llm-forget bench` on one shape, with LoRA or with QLoRA, whose naive form would be the same as LoRA's."""
    on_gpu = torch.cuda.is_available()
    keys = {
        "model_name_or_path": folder / "model", "forget": folder / "forget.jsonl", "retain": folder / "retain.jsonl",
        "dtype": "bfloat16" if on_gpu else "float32", "load_in_4bit": quantised, "lora_r": 16, "lora_alpha": 32,
        "per_device_train_batch_size": 8 if on_gpu else 2, "method": "npo", "max_length": 512,
    }  # fmt: skip
    argv = [word for key, value in keys.items() for word in (f"--{key}", str(value))]
    return bench(argv, methods=METHODS, rounds=5 if on_gpu else 2, output=str(output), naive=not quantised)


def main(folder: Path, shapes: list[str]) -> int:
    """Print a line for each shape; 1 where ours is neither `FASTER` than naive nor `SMALLER`."""
    good = True
    folder.mkdir(parents=True, exist_ok=True)
    for shape in shapes:
        with tempfile.TemporaryDirectory(prefix="llm_forget-gpu-") as scratch:
            on_gpu = torch.cuda.is_available()
            write_model(shape, Path(scratch) / "model", torch.bfloat16 if on_gpu else torch.float32)
            write_rows(Path(scratch), 240 if on_gpu else 20)
            lora = measured(shape, Path(scratch), quantised=False, output=folder / f"{shape}-lora.json")
            qlora = measured(shape, Path(scratch), quantised=True, output=folder / f"{shape}-qlora.json")
        ours, naive, packed = lora["variants"]["npo"], lora["variants"]["naive_npo"], qlora["variants"]["npo"]
        weights = lora["model"]["weight_bytes"], qlora["model"]["weight_bytes"]
        whole = [weights[0] + ours["peak_bytes"], weights[0] + naive["peak_bytes"], weights[1] + packed["peak_bytes"]]
        print(
            f"{shape}: {lora['model']['architecture']}, {torch.cuda.get_device_name() if on_gpu else 'cpu'}; npo "
            f"{ours['tokens_per_second']['median']:,.0f} tokens/s with LoRA, "
            f"{packed['tokens_per_second']['median']:,.0f} with QLoRA, "
            f"{naive['tokens_per_second']['median']:,.0f} naive; of the ceiling of matrix products "
            f"{ours['of_ceiling']['median']:.0%}; speed of ours to naive "
            f"{lora['ratios']['naive_to_ours']['npo']['time']['median']:.2f}; memory, weights included: "
            f"{whole[0] / 2**30:.2f} GiB LoRA, {whole[2] / 2**30:.2f} QLoRA, {whole[1] / 2**30:.2f} naive "
            f"({whole[0] / whole[1]:.2f} and {whole[2] / whole[1]:.2f} of naive)"
        )
        faster = lora["ratios"]["naive_to_ours"]["npo"]["time"]["median"]
        good &= faster >= FASTER or min(whole[0], whole[2]) / whole[1] <= SMALLER
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1]), sys.argv[2:] or ["1b", "8b"]))
