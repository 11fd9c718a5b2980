"""Saving an adapter over another one, with a disk that fails and a process that dies at every single write."""

import contextlib
import errno
import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from llm_forget.models.adapters import files
from llm_forget.models.adapters.files import load_adapter, save_adapter
from llm_forget.models.adapters.lora import attach_adapter
from tests.support.disturbed import IDS, disturb
from tests.support.fault_positions import FAULTS

# What changes files: methods of files, functions of os, and what writes safetensors.
CHANGING = {"write", "flush", "fsync", "replace", "rename", "mkdir", "unlink", "rmdir", "serialize_file"}


def disturbed_at(number: int, fault: Callable[[], None], act: Callable[[], Any], *, after: bool) -> tuple[int, bool]:
    """Do something with a fault before (or after) call ``number`` of those that change files.

    Returns:
        How many of them there were, and whether it ended as if all were well.
    """
    made, well = 0, False

    def watch(_: object, event: str, call: Any) -> None:
        nonlocal made
        if getattr(call, "__name__", "") not in CHANGING or isinstance(getattr(call, "__self__", None), str | bytes):
            return
        made += event == "c_call"
        if made == number + 1 and (event == "c_call") != after:
            fault()

    sys.setprofile(watch)
    try:
        with contextlib.suppress(OSError):
            act()
            well = True
    finally:
        sys.setprofile(None)
    return made, well


def full_disk() -> None:
    raise OSError(errno.ENOSPC, "no space is left")


def dies() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def two(tiny_model: Any, lora_args: Any, tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """A folder with the adapter of the first of two models."""
    models = {
        name: disturb(attach_adapter(tiny_model(), lora_args()), scale=scale)
        for name, scale in (("old", 0.3), ("new", 0.1))
    }
    return save_adapter(models["old"], tmp_path / "run" / "adapter"), models


def state(folder: Path, tiny_model: Any, models: dict[str, Any]) -> str:
    """``old`` or ``new``; the folder loads, and is exactly one of them."""
    found = load_adapter(tiny_model(), folder)(IDS).logits
    (name,) = [name for name, model in models.items() if torch.equal(found, model(IDS).logits)]
    return name


@pytest.fixture
def calls(two) -> int:
    """Number of calls that change files while the second model is saved over the first; the first is there again."""
    folder, models = two
    made, well = disturbed_at(sys.maxsize, full_disk, lambda: save_adapter(models["new"], folder), after=False)
    save_adapter(models["old"], folder)
    assert well
    assert made > 8
    return made


@pytest.mark.slow
@FAULTS
@pytest.mark.parametrize("after", [False, True], ids=["before the call", "after it"])
def test_whichever_write_of_a_save_fails_the_old_or_the_new_adapter_is_there(
    two, tiny_model, calls, after, faults
) -> None:
    folder, models = two
    states = []
    for at in [*faults.of(calls, size=4), calls]:
        made, well = disturbed_at(at, full_disk, lambda: save_adapter(models["new"], folder), after=after)
        states.append(state(folder, tiny_model, models))
        assert states[-1] == "new" or not well, "what is acknowledged is there"
        save_adapter(models["old"], folder)
        assert state(folder, tiny_model, models) == "old"
        assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    assert well
    assert made <= at, "every call was tried"
    assert states[-1] == "new"
    assert "old" in states


@pytest.mark.slow
@FAULTS
@pytest.mark.parametrize("after", [False, True], ids=["before the call", "after it"])
def test_a_save_that_is_killed_anywhere_leaves_the_old_or_the_new_adapter(
    two, tiny_model, calls, after, faults
) -> None:
    folder, models = two
    states = []
    for at in [*faults.of(calls, size=4), calls]:
        child = os.fork()
        if child == 0:
            disturbed_at(at, dies, lambda: save_adapter(models["new"], folder), after=after)
            os._exit(0)
        died = os.WIFSIGNALED(os.waitpid(child, 0)[1])
        states.append(state(folder, tiny_model, models))
        save_adapter(models["old"], folder)
    assert not died, "every call was tried"
    assert states[-1] == "new"
    assert "old" in states


@pytest.mark.slow
def test_a_disk_that_stays_full_between_two_renames_takes_away_no_adapter(two, tiny_model, monkeypatch) -> None:
    folder, models = two
    monkeypatch.setattr(files, "_exchange_folders", lambda *_: False)  # a system without such a call
    replace = os.replace

    def full_after_the_first(source: Path, target: Path) -> None:
        if Path(target) == folder:
            full_disk()
        replace(source, target)

    monkeypatch.setattr(os, "replace", full_after_the_first)
    with pytest.raises(OSError, match="space"):
        save_adapter(models["new"], folder)
    monkeypatch.undo()
    (left,) = folder.parent.iterdir()
    assert state(left, tiny_model, models) == "old", "beside its place, since it could not be put back"


@pytest.mark.slow
@pytest.mark.parametrize("size", [10, 1000, 5000])
def test_a_disk_that_fills_up_within_the_weights_leaves_the_old_adapter(two, tiny_model, size) -> None:
    folder, models = two
    assert (folder / "adapter_model.safetensors").stat().st_size > 5000
    signals, limits = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        with pytest.raises(OSError, match=r"File too large|os error 27") as caught:
            save_adapter(models["new"], folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, signals)
    assert caught.value.errno == errno.EFBIG  # of which the command makes exit code 5
    assert state(folder, tiny_model, models) == "old"
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
