"""Measure how much memory a step needs at its peak, beyond the memory in use before the step."""

import ctypes
import gc
import platform
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

MIB = 2**20
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt
_SMALL = MIB // 8  # bytes; larger blocks are mapped separately while memory is measured
_MAPPED = 2  # flag in the word before a glibc block: the block is mapped separately, outside the heap
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def weight_bytes(model: nn.Module) -> int:
    """Return the total size of all parameters and buffers in bytes."""
    return sum(t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers()])


@contextmanager
def returned_at_once() -> Iterator[None]:
    """Make glibc return the memory of freed tensors to the system at once, within a ``with`` block.

    Inside the block, resident memory equals memory in use. Never measure time there, because allocations are slow. With
    a C library other than glibc, the block has no effect.
    """
    libc = _glibc()
    if libc is None:
        yield
        return
    gc.collect()  # objects freed later would leave free blocks in the heap
    libc.mallopt(_M_MMAP_THRESHOLD, _SMALL)
    libc.mallopt(_M_TRIM_THRESHOLD, _SMALL)
    libc.malloc_trim(0)
    plugs = _plug(libc)
    try:
        yield
    finally:
        for block in plugs:
            libc.free(block)
        libc.mallopt(_M_MMAP_THRESHOLD, 32 * MIB)
        libc.mallopt(_M_TRIM_THRESHOLD, 64 * MIB)


def _plug(libc: Any) -> list[int]:
    """Allocate all free blocks of the heap, so that glibc must map new memory for tensors. Return the addresses."""
    blocks: list[int] = []
    size = 64 * MIB
    while size >= _SMALL:
        for _ in range(10_000):
            block = libc.malloc(size)
            if block is None:
                break
            if ctypes.c_size_t.from_address(block - ctypes.sizeof(ctypes.c_size_t)).value & _MAPPED:
                libc.free(block)
                break
            blocks.append(block)
        size //= 4
    return blocks


def _glibc() -> Any:
    """Return glibc as a ctypes library with typed ``malloc`` and ``free``, or None for another C library."""
    if platform.libc_ver()[0] != "glibc":
        return None
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.restype, libc.free.argtypes = None, [ctypes.c_void_p]
    return libc


def peak_of(step: Callable[[], object], device: torch.device) -> int:
    """Return the peak memory of ``step`` minus the memory in use before it, in bytes.

    Memory is CUDA allocations on a GPU, and resident memory on a CPU. A warm-up step runs first, so that permanent
    allocations of the first step do not count.
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
        return _resident_peak(step)


def _resident_peak(step: Callable[[], object]) -> int:
    gc.collect()
    if (libc := _glibc()) is not None:
        libc.malloc_trim(0)
    before = _resident()
    if sys.platform == "linux":
        try:
            _CLEAR.write_text("5")  # resets the kernel's high-water mark of resident memory
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


def _sampled_peak(step: Callable[[], object]) -> int:
    """Run ``step``, and return the peak of resident memory in bytes, from samples every 2 ms.

    This replaces the kernel's peak counter on systems where the counter cannot be reset.
    """
    samples, done = [_resident()], threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            samples.append(_resident())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        step()
    finally:
        done.set()
        thread.join()
    return max(*samples, _resident())
