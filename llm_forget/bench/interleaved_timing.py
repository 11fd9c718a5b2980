"""Interleaved timing: every variant runs once per round, so that other load on the machine affects all equally."""

import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

Timed = Callable[[], object]


def synchronise(device: torch.device) -> None:
    """Wait until the device has finished its queued work; does nothing on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(work: Timed, device: torch.device) -> float:
    """Return the wall-clock seconds of one call, including the work that it queued on the device."""
    synchronise(device)
    began = time.perf_counter()
    work()
    synchronise(device)
    return time.perf_counter() - began


def interleave(
    steps: Mapping[str, Callable[[int], object]], rounds: int, device: torch.device
) -> dict[str, list[float]]:
    """Return the seconds of each step in each of ``rounds`` rounds; a warm-up round runs first and is not returned.
    Each step is called with the round number, 0 for the warm-up. The order rotates, so that no step is always first.
    """
    times: dict[str, list[float]] = {name: [] for name in steps}
    order = deque(steps)
    for number in range(rounds + 1):
        for name in order:
            seconds = seconds_of(lambda step=steps[name], n=number: step(n), device)  # type: ignore[misc]
            if number > 0:
                times[name].append(seconds)
        order.rotate(-1)
    return times


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Return median, minimum, maximum and count of the values, and the values themselves."""
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "n": len(values),
        "values": list(values),
    }


def ratio(times: Mapping[str, Sequence[float]], of: str, to: str) -> dict[str, Any]:
    """Return the spread over rounds of ``times[of] / times[to]``; 1 if both take equally long."""
    return spread([a / b for a, b in zip(times[of], times[to], strict=True)])


def line_fit(x: Sequence[float], y: Sequence[float]) -> dict[str, float]:
    """Fit ``y = a + b x`` by least squares; ``r2`` is the explained share of the variance, 1 for points on a line."""
    b, a = np.polyfit(x, y, 1)
    values = np.asarray(y)
    around = float(((values - values.mean()) ** 2).sum())
    missed = float(((values - a - b * np.asarray(x)) ** 2).sum())
    r2 = 1.0 - missed / around if around > 0 else float(missed == 0)  # constant values have no variance
    return {"a": float(a), "b": float(b), "r2": r2}


def power_fit(x: Sequence[float], y: Sequence[float]) -> dict[str, float]:
    """Fit ``y = c x^k`` by least squares of the logarithms, for which ``r2`` is computed; k = 1 is linear growth."""
    fit = line_fit(np.log(x).tolist(), np.log(y).tolist())
    return {"c": math.exp(fit["a"]), "k": fit["b"], "r2": fit["r2"]}
