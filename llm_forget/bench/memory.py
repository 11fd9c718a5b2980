"""How much memory a step takes at its peak, beyond what was held before it."""

from __future__ import annotations

import ctypes
import gc
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

MIB = 2**20
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def weight_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and buffers."""
    return sum(t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers()])


@contextmanager
def returned_at_once() -> Iterator[None]:
    """Within the block freed tensors go back to the system, so that resident memory is what is in use (glibc only).

    Slower, and so never around anything that is timed. Afterwards the thresholds are those that glibc itself comes to
    in a program that frees large blocks.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        yield
        return
    mallopt(_M_MMAP_THRESHOLD, MIB)
    try:
        yield
    finally:
        mallopt(_M_MMAP_THRESHOLD, 32 * MIB)
        mallopt(_M_TRIM_THRESHOLD, 64 * MIB)


def peak_of(step: Callable[[], object], device: torch.device) -> int:
    """Bytes held at the peak of ``step``, less those held before it: CUDA's allocations, or resident memory.

    One step goes before, so that what exists from the first step on is not counted as this one's.
    """
    if device.type == "cuda":
        step()
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        return int(torch.cuda.max_memory_allocated(device) - before)
    with returned_at_once():
        step()
        # The lesser of two: memory that earlier work left in the heap only ever adds.
        return min(_resident_peak(step), _resident_peak(step))


def _give_back() -> None:
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):  # another C library
        return


def _resident_peak(step: Callable[[], object]) -> int:
    _give_back()
    before = _resident()
    if sys.platform == "linux":
        try:
            _CLEAR.write_text("5")  # sets the kernel's mark of the highest resident memory to the present one
        except OSError:
            return _sampled_peak(step) - before
        step()
        return _kibibytes("VmHWM") * 1024 - before
    return _sampled_peak(step) - before


def _resident() -> int:
    if sys.platform == "linux":
        return _kibibytes("VmRSS") * 1024
    import psutil

    return int(psutil.Process().memory_info().rss)


def _kibibytes(name: str) -> int:
    (line,) = [line for line in _STATUS.read_text().splitlines() if line.startswith(f"{name}:")]
    return int(line.split()[1])


def _sampled_peak(step: Callable[[], object], every: float = 0.002) -> int:
    """Highest resident memory seen by a thread that looks every 2 ms; where the kernel's own mark cannot be set."""
    seen, done = [_resident()], threading.Event()

    def watch() -> None:
        while not done.wait(every):
            seen.append(_resident())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        step()
    finally:
        done.set()
        thread.join()
    return max(*seen, _resident())
