"""Time variants in turn, each once per round, so that other load on the machine affects all alike. Also fits curves."""

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
    """Wait until a GPU has finished its queued work. Do nothing for a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(work: Timed, device: torch.device) -> float:
    """Return the wall-clock seconds of one call of ``work``, including GPU work that the call queues."""
    synchronise(device)
    began = time.perf_counter()
    work()
    synchronise(device)
    return time.perf_counter() - began


def interleave(
    steps: Mapping[str, Callable[[int], object]], rounds: int, device: torch.device
) -> dict[str, list[float]]:
    """Run every step once per round, and return the seconds of each step in each round.

    A warm-up round runs first, and its times are not returned. A step is called with the round number, which is 0 for
    the warm-up. The order rotates from round to round, so that no step is always first.
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
    """Return ``median``, ``min``, ``max`` and count ``n`` of some numbers, and the numbers themselves as ``values``."""
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "n": len(values),
        "values": list(values),
    }


def ratio(times: Mapping[str, Sequence[float]], of: str, to: str) -> dict[str, Any]:
    """Return the spread of ``times[of] / times[to]`` over rounds. A ratio of 1 means equal times."""
    return spread([a / b for a, b in zip(times[of], times[to], strict=True)])


def line_fit(x: Sequence[float], y: Sequence[float]) -> dict[str, float]:
    """Fit ``y = a + b x`` by least squares. Return a, b and ``r2``, the explained share of the variance (1: exact)."""
    b, a = np.polyfit(x, y, 1)
    values = np.asarray(y)
    around = float(((values - values.mean()) ** 2).sum())
    missed = float(((values - a - b * np.asarray(x)) ** 2).sum())
    r2 = 1.0 - missed / around if around > 0 else float(missed == 0)  # constant values have no variance
    return {"a": float(a), "b": float(b), "r2": r2}


def power_fit(x: Sequence[float], y: Sequence[float]) -> dict[str, float]:
    """Fit ``y = c x^k`` by least squares of the logarithms. Return c, k and their ``r2``. ``k = 1``: linear growth."""
    fit = line_fit(np.log(x).tolist(), np.log(y).tolist())
    return {"c": math.exp(fit["a"]), "k": fit["b"], "r2": fit["r2"]}
