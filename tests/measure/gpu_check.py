"""Runs every launch configuration on this machine's GPUs and compares what comes out; by hand, not by pytest.

    python tests/measure/gpu_check.py [CONFIGURATION...]        (default: all that this machine can run)

A tiny model trains ten steps of npo through the command line: first in one process with the rows of all processes, then
under each configuration, then on nf4 (QLoRA), whose adapter is compared with that of a second run of itself and shown
beside the first. Prints, for each: processes, wrapper, seconds, peak memory of the first process beside the estimate of
--dry_run, and the largest difference of a weight of the adapter. Exit code 1 where one differs by more than 1e-4 (GPU
kernels add up in another order than each other; on CPUs it is 1e-5), or did not run at all.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

TOLERANCE, ROWS = 1e-4, 4
MOVED = 1e-2  # of an adapter's weights, at least: what is equal is not just what it began with
KEYS: dict[str, Any] = {
    "method": "npo", "max_steps": 10, "learning_rate": 1e-2, "adam_epsilon": 1e-3, "lr_scheduler_type": "constant",
    "save_strategy": "steps", "save_steps": 5, "logging_steps": 1, "lora_r": 8,  # a checkpoint just after a log line
    "model_name_or_path": "builtin:demo-llama", "disable_tqdm": True,
}  # fmt: skip


def write_rows(folder: Path) -> None:
    for split, count in (("forget", 20), ("retain", 40)):
        rows = [
            {"id": f"{split}-{i}", "prompt": f"{split} {i}?", "completion": f"{i} " * (1 + i % 7)} for i in range(count)
        ]
        (folder / f"{split}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def command(folder: Path, *words: str, processes: int) -> list[str]:
    keys = {**KEYS, "forget": folder / "forget.jsonl", "retain": folder / "retain.jsonl"}
    keys["per_device_train_batch_size"] = ROWS // processes
    pairs = [word for key, value in keys.items() for word in (f"--{key}", str(value))]
    return [sys.executable, "-m", "llm_forget", "unlearn", *pairs, *words]


def train(folder: Path, name: str, *words: str, processes: int = 1) -> dict[str, Any] | str:
    """Adapter and provenance of one run, or the last words of one that failed."""
    base = command(folder, *words, "--output_dir", str(folder / name), processes=processes)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "LLM_FORGET_CACHE": str(folder / name)}
    done = subprocess.run(base, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        said = [line for line in (done.stdout + done.stderr).splitlines() if re.search(r"Error|llm-forget", line)]
        return (said or ["no message"])[-1][:200]
    facts = json.loads((folder / name / "provenance.json").read_text())
    return {**facts, "weights": load_file(folder / name / "adapter" / "adapter_model.safetensors")}


def estimated(folder: Path, *words: str, processes: int) -> float:
    done = subprocess.run(
        command(folder, *words, "--output_dir", str(folder / "dry"), "--dry_run", "true", processes=processes),
        capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    found = re.search(r"estimated peak memory: ([\d.]+)", done.stdout + done.stderr)
    return float(found.group(1)) if found else float("nan")


def difference(weights: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> float:
    if weights.keys() != others.keys() or any(others[key].shape != value.shape for key, value in weights.items()):
        return float("inf")
    return max(float((value - others[key]).abs().max()) for key, value in weights.items())


def row(name: str, found: dict[str, Any] | str, against: dict[str, torch.Tensor], estimate: float) -> bool:
    """Print one line of the table; whether it is as it should be."""
    if isinstance(found, str):
        print(f"| {name} | - | - | - | - | - | failed: {found} |", flush=True)
        return False
    apart = difference(against, found["weights"])
    moved = max(float(value.abs().max()) for key, value in found["weights"].items() if "lora_B" in key)
    good = apart < TOLERANCE and moved > MOVED
    cost, ran = found["cost"], f"{found['processes']} | {found['wrapper']}"
    print(
        f"| {name} | {ran} | {cost['seconds']:.0f} | {cost['peak_memory_gib']:.2f} | {estimate:.2f} | "
        f"{apart:.1e} of {moved:.1e}{'' if good else ' NOT THE SAME'} |",
        flush=True,
    )
    return good


def main(names: list[str]) -> int:
    gpus = torch.cuda.device_count()
    if gpus == 0:
        print("no GPU is visible here; tests/test_processes.py and tests/test_sharding.py are for CPUs")
        return 2
    print(f"{gpus} x {torch.cuda.get_device_name(0)}, torch {torch.__version__}\n")
    print("| configuration | processes | wrapper | s | peak GiB | estimate | differs from one process by |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    several = [name for name in ("ddp", "fsdp2", "zero2", "zero3") if not names or name in names]
    if importlib.util.find_spec("deepspeed") is None:
        several = [name for name in several if not name.startswith("zero")]
        print("| zero2, zero3 | - | - | - | - | - | skipped: deepspeed is not installed |")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_rows(folder)
        one = ("--accelerate_config", "single_gpu")
        first = train(folder, "single_gpu", *one)
        if isinstance(first, str):
            print(f"one process failed, so there is nothing to compare with: {first}")
            return 1
        good = [row("single_gpu", first, first["weights"], estimated(folder, processes=1))]
        # With one GPU they run in one process, which still wraps and saves in its own way.
        processes = min(gpus, ROWS) if gpus != 3 else 2
        for name in several:
            words = ("--accelerate_config", name, "--num_processes", str(processes))
            found = train(folder, name, *words, processes=processes)
            good.append(row(name, found, first["weights"], estimated(folder, processes=processes)))
        if not names or "qlora" in names:
            nf4 = ("--load_in_4bit", "true", "--dtype", "bfloat16")
            found, again = (train(folder, name, *one, *nf4) for name in ("qlora", "qlora-again"))
            expected = again["weights"] if isinstance(again, dict) else {}
            good.append(row("QLoRA, twice", found, expected, estimated(folder, *nf4, processes=1)))
            if isinstance(found, dict):
                print(
                    f"\nQLoRA differs from LoRA by {difference(first['weights'], found['weights']):.1e}, as it should."
                )
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
