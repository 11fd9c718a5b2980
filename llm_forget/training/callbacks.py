"""Callbacks of a training job: its log file and its progress bar."""

import json
import math
import resource
from pathlib import Path
from typing import Any

import torch
from transformers import ProgressCallback, TrainerCallback

from llm_forget.core.files import write_atomic


def peak_memory() -> float:
    """Return the peak memory of this process in GiB: CUDA allocations with a GPU, otherwise resident memory."""
    if torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / 2**30, 3)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3)


class MetricsFile(TrainerCallback):
    """A callback that appends each log line to metrics.jsonl. On resume, it removes lines of steps that will repeat."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero and self.path.is_file():
            lines = [line for line in self.path.read_text().splitlines() if line.endswith("}")]
            earlier_lines = [line for line in lines if json.loads(line)["step"] <= state.global_step]
            write_atomic(self.path, "".join(f"{line}\n" for line in earlier_lines))

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if state.is_world_process_zero and logs:
            with self.path.open("a") as file:
                numbers = {key: _written(value) for key, value in logs.items()} | {"peak_memory_gib": peak_memory()}
                file.write(json.dumps({"step": state.global_step, **numbers}) + "\n")


def _written(value: Any) -> Any:
    """Return None for NaN and infinity, because JSON has neither, and any other value unchanged."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


class ProgressLine(ProgressCallback):
    """A progress bar that shows the time left, the latest log-probs and the token rate."""

    SHOWN = ("loss", "logps/forget", "logps/retain", "logps/train", "tokens_per_second")

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if state.is_world_process_zero and self.training_bar is not None and logs:
            shown = {key.rpartition("/")[2]: f"{logs[key]:.3g}" for key in self.SHOWN if key in logs}
            self.training_bar.set_postfix(shown)
