"""Sum values over the steps between two log lines, and over processes when a line is written."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor


class StepStatistics:
    """Sums over the steps since the last log line.

    Keys are ``sum/<split>`` and ``count/<split>`` (sum and number of token log-probs), ``<split>/<term>`` (loss of a
    term) and ``dual/<split>/<term>`` (weight of a term that is a constraint).
    """

    def __init__(self, step: int = 0) -> None:
        self.sums: dict[str, Tensor] = {}
        self.tokens = 0.0
        self.step = step
        self.began = time.perf_counter()

    def add(self, key: str, value: Tensor) -> None:
        """Add the value of one micro-batch to the sum of ``key``."""
        precise = torch.float32 if value.device.type == "mps" else torch.float64
        self.sums[key] = self.sums[key] + value if key in self.sums else value.clone().to(precise)

    def means(self, accelerator: Any, step: int) -> dict[str, float]:
        """Return the values of a log line: means over all processes and over the steps since the last line."""
        total = self._total(accelerator)
        steps = max(1, step - self.step)
        logs = {}
        for key, value in total.items():
            kind, _, name = key.partition("/")
            if kind == "sum" and name != "reference_retain":
                logs[f"logps/{name}"] = value / max(1.0, total[f"count/{name}"])
            elif kind == "dual":
                logs[key] = value / steps / accelerator.num_processes
            elif kind not in ("sum", "count"):
                logs[key] = value / steps
        if "sum/reference_retain" in total:
            lost = total["sum/reference_retain"] - total["sum/retain"]
            logs["retain_drop"] = lost / max(1.0, total["count/retain"])
        logs["tokens_per_second"] = self.tokens / max(1e-9, time.perf_counter() - self.began)
        return logs

    def state(self, accelerator: Any) -> dict[str, Any]:
        """Return the state for `restored`, with sums over all processes. All processes must call this."""
        seconds = time.perf_counter() - self.began
        return {"step": self.step, "tokens": self.tokens, "seconds": seconds, "sums": self._total(accelerator)}

    @classmethod
    def restored(cls, state: dict[str, Any], *, whole: bool) -> StepStatistics:
        """Return statistics from a saved `state`. All processes must call this, and exactly one with ``whole=True``.

        Saved sums are totals over all processes. The process with ``whole=True`` gets them, and the others get zeros.
        """
        statistics = cls(state["step"])
        statistics.tokens = state["tokens"]
        statistics.began -= state["seconds"]
        share = torch.tensor(1.0 if whole else 0.0, dtype=torch.float64)
        statistics.sums = {key: share * value for key, value in state["sums"].items()}
        return statistics

    def _total(self, accelerator: Any) -> dict[str, float]:
        keys = sorted(self.sums)  # the same on all processes
        if not keys:  # just after a log line
            return {}
        sums = torch.stack([self.sums[k].to(accelerator.device) for k in keys])
        return dict(zip(keys, accelerator.reduce(sums, "sum").tolist(), strict=True))
