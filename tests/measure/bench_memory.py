"""Peaks of resident memory beside the estimate of `--dry_run`; not a test.

    python tests/measure/bench_memory.py [CASE...]        (without a case: all of them, each in its own process)

A case trains three steps. Measured is the largest resident set of the process during them, less what was resident once
the weights were there. Freed blocks go back to the system at once (MALLOC_MMAP_THRESHOLD_), as they go back to CUDA's
allocator; with glibc's own settings the resident set is larger by what lies about in its arenas.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

SMOLLM2 = "smollm2"
MID = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 8, "num_attention_heads": 8}
MID |= {"num_key_value_heads": 8, "vocab_size": 8192}


class Case(NamedTuple):
    model: str  # smollm2 | mid | wide: 4 x the vocabulary of mid
    lora: bool
    rows: int  # of each of two splits
    length: int  # of the longest row
    checkpointing: bool = False
    dtype: str = "float32"
    bf16: bool = False
    method: str = "npo"


CASES = {
    "lora": Case(SMOLLM2, True, 4, 97),
    "lora-long": Case(SMOLLM2, True, 4, 256),
    "lora-checkpointing": Case(SMOLLM2, True, 8, 256, checkpointing=True),
    "lora-kl": Case(SMOLLM2, True, 4, 97, method="npo_kl"),
    "full": Case(SMOLLM2, False, 4, 97),
    "full-checkpointing": Case(SMOLLM2, False, 8, 256, checkpointing=True),
    "mid-lora": Case("mid", True, 8, 128),
    "mid-lora-checkpointing": Case("mid", True, 16, 256, checkpointing=True),
    "mid-full": Case("mid", False, 8, 128),
    "mid-full-long": Case("mid", False, 8, 384),
    "mid-bf16": Case("mid", True, 8, 256, dtype="bfloat16"),
    "mid-bf16-autocast": Case("mid", True, 8, 256, dtype="bfloat16", bf16=True),
    "wide-lora": Case("wide", True, 8, 128),
}


def measure(case: Case, folder: Path) -> dict[str, float]:
    """Run in a process of its own: estimate and measured peak above the weights, MiB."""
    import psutil
    import torch
    from datasets import Dataset
    from transformers import LlamaConfig, LlamaForCausalLM
    from trl import ModelConfig

    from llm_forget.core.config import UnlearnConfig
    from llm_forget.models.adapters.lora import attach_adapter, prepare_gradient_checkpointing
    from llm_forget.models.load import load_base, load_tokenizer
    from llm_forget.objectives.methods import build_objective
    from llm_forget.training import dry_run
    from llm_forget.training.trainer import UnlearnTrainer

    torch.set_num_threads(1)
    location = "builtin:smollm2-135m"
    tokenizer = load_tokenizer(ModelConfig(model_name_or_path=location))
    if case.model != SMOLLM2:
        location = str(folder / "model")
        sizes = {**MID, **({"vocab_size": 4 * MID["vocab_size"]} if case.model == "wide" else {})}
        LlamaForCausalLM(LlamaConfig(**sizes)).save_pretrained(location)

    def rows(count: int) -> Dataset:
        made = []
        for i in range(count):
            length = case.length - (i * 7) % (case.length // 3)
            ids = [(31 * i + 7 * j) % 8000 for j in range(length)]
            made.append({"id": str(i), "input_ids": ids, "labels": [-100] * (length // 3) + ids[length // 3 :]})
        return Dataset.from_list([{**row, "source_index": 0} for row in made])

    model_args = ModelConfig(
        model_name_or_path=location, use_peft=case.lora, lora_r=16, lora_alpha=32, lora_dropout=0.0, dtype=case.dtype
    )
    splits = {"forget": rows(case.rows), "retain": rows(case.rows)}
    args = UnlearnConfig(
        output_dir=str(folder / "run"), per_device_train_batch_size=case.rows, max_steps=3, learning_rate=1e-5,
        save_strategy="no", logging_steps=1, disable_tqdm=True, use_cpu=True, bf16=case.bf16, report_to=[],
        gradient_checkpointing=case.checkpointing,
    )  # fmt: skip
    objective = build_objective(case.method, None)
    counts = dry_run.batch_counts(splits, case.rows)
    estimate = dry_run.estimate_memory(
        model_args, counts, checkpointing=case.checkpointing, keeps_logits=objective.needs("logits"),
        autocast=case.bf16,
    )  # fmt: skip
    model = load_base(model_args)
    if case.checkpointing:
        prepare_gradient_checkpointing(model)
    sum(
        float(parameter.detach().float().sum()) for parameter in model.parameters()
    )  # weights lie in the file till read
    gc.collect()
    process = psutil.Process()
    loaded = process.memory_info().rss
    if case.lora:
        model = attach_adapter(model, model_args)
    trainer = UnlearnTrainer(model, args, splits=splits, objective=objective, processing_class=tokenizer)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here on
    trainer.train()
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    peak = int(status["VmHWM"].split()[0]) * 1024
    above = 2**30 * (estimate.total - estimate.weights)
    return {
        "estimated": above / 2**20, "measured": (peak - loaded) / 2**20, "weights": estimate.weights * 1024,
        **{part: 1024 * value for part, value in vars(estimate).items() if part != "weights"},
    }  # fmt: skip


def main(names: list[str]) -> None:
    environment: dict[str, Any] = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    environment |= {"MALLOC_TRIM_THRESHOLD_": "65536", "HF_HUB_OFFLINE": "1"}
    print("| case | weights | estimated above | measured above | estimated / measured | with weights |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name in names or CASES:
        with tempfile.TemporaryDirectory() as folder:
            added = {**environment, "LLM_FORGET_CACHE": folder}
            command = [sys.executable, __file__, "--measure", name, folder]
            done = subprocess.run(command, env=added, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stderr[-3000:])
        found = json.loads(done.stdout.splitlines()[-1])
        both = [found[kind] + found["weights"] for kind in ("estimated", "measured")]
        print(
            f"| {name} | {found['weights']:.0f} | {found['estimated']:.0f} | {found['measured']:.0f} | "
            f"{found['estimated'] / found['measured']:.2f} | {both[0] / both[1]:.2f} |",
            {k: round(v) for k, v in found.items()} if os.environ.get("PARTS") else "", flush=True,
        )  # fmt: skip


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        result = measure(CASES[sys.argv[2]], Path(sys.argv[3]))
        print(json.dumps(result))
    else:
        main(sys.argv[1:])
