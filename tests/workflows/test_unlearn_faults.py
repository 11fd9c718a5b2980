"""Disks that fail and processes that die while a run trains and saves: it is incomplete or complete, never broken."""

import builtins
import contextlib
import errno
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

from llm_forget.core.run_directory import Run
from llm_forget.models.adapters.files import verify_adapter
from llm_forget.workflows.unlearn import unlearn
from tests.support.fault_positions import FAULTS, FaultPositions

pytestmark = pytest.mark.slow

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def job(tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Keys of one step of unlearning."""
    monkeypatch.setenv("LLM_FORGET_CACHE", str(tmp_path / "cache"))
    for name, count in (("forget", 4), ("retain", 6)):
        rows = [
            {"id": f"{name}-{i}", "question": f"Who is {name} {i}?", "answer": f"{i} of {name}"} for i in range(count)
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "model_name_or_path": str(tiny_folder), "output_dir": str(tmp_path / "runs" / "run"), "max_steps": 1,
        "forget": str(tmp_path / "forget.jsonl"), "retain": str(tmp_path / "retain.jsonl"), "learning_rate": 1e-2,
        "save_strategy": "no", "lora_r": 4, "per_device_train_batch_size": 2,
        "disable_tqdm": True, "use_cpu": True,
    }  # fmt: skip


@pytest.fixture
def expected(job: dict[str, Any], tmp_path: Path) -> bytes:
    """The adapter of an undisturbed run; also fills the caches."""
    run = unlearn(**{**job, "output_dir": str(tmp_path / "whole")})
    return (run.adapter / WEIGHTS).read_bytes()


@contextlib.contextmanager
def failing_disk(at: int, *, within: str) -> Iterator[list[str]]:
    """Let call number ``at`` (from 0) that changes a file below ``within`` fail, and all after it; gives the calls."""
    made: list[str] = []

    def count(name: str, *given: Any) -> None:
        places = [str(place) for place in given if isinstance(place, str | Path) and within in str(place)]
        if places:
            made.append(f"{name} {Path(places[-1]).name}")
            if len(made) > at:
                raise OSError(errno.ENOSPC, "No space left on device")

    opened = builtins.open

    def opening(file: Any, mode: str = "r", *rest: Any, **named: Any) -> Any:
        if set(mode) & set("wax+"):
            count("open", file)
        return opened(file, mode, *rest, **named)

    with pytest.MonkeyPatch.context() as patch:
        for name in ("replace", "rename", "mkdir", "unlink", "rmdir"):
            original = getattr(os, name)

            def call(*given: Any, _name: str = name, _original: Any = original, **more: Any) -> Any:
                count(_name, *given[:2])
                return _original(*given, **more)

            patch.setattr(os, name, call)
        patch.setattr(builtins, "open", opening)
        yield made


def look(run: Run, expected: bytes) -> bool:
    """Whether the run says that it is finished; then its adapter must be whole, and the one that was wanted."""
    if not run.state_file.is_file():
        return False
    if not run.complete:
        with pytest.raises(ValueError, match="is incomplete"):
            Run.open(run.path)
        return False
    assert verify_adapter(run.adapter)
    assert (run.adapter / WEIGHTS).read_bytes() == expected
    return True


@FAULTS
def test_a_run_whose_write_fails_is_incomplete_and_the_same_command_finishes_it(
    job: dict[str, Any], expected: bytes, faults: FaultPositions
) -> None:
    with failing_disk(sys.maxsize, within="/runs/") as made:
        unlearn(**job)
    count = len(made)
    assert count > 20, "few writes"
    for at in [*faults.of(count, size=4), count]:
        shutil.rmtree(Path(job["output_dir"]).parent)
        acknowledged = False
        with failing_disk(at, within="/runs/") as made:
            try:
                unlearn(**job)
                acknowledged = True
            except (OSError, RuntimeError, SafetensorError):
                pass
        assert acknowledged or len(made) > at, "it failed for another reason"
        assert look(Run(Path(job["output_dir"])), expected) or not acknowledged, f"write {at}, {made[at : at + 1]}"
        run = unlearn(**job)
        assert look(run, expected), f"write {at}, {made[at : at + 1]}"
        left = [path.name for path in run.path.rglob(".*") if path.name.endswith((".tmp", ".old"))]
        assert left == [], f"write {at}, {made[at : at + 1]}"
    assert len(made) <= at, "every write was tried"


@FAULTS
def test_a_run_killed_at_random_moments_ends_with_the_same_bytes(
    job: dict[str, Any], expected: bytes, faults: FaultPositions
) -> None:
    began = time.monotonic()
    unlearn(**job)
    whole = time.monotonic() - began
    job |= {"save_strategy": "steps", "save_steps": 1}
    run, killed, finished = unlearn(**{**job, "overwrite": True}), 0, 0
    dice = random.Random(0)
    moments = [dice.uniform(0, 1.2 * whole) for _ in range(50)]
    tried = faults.of(len(moments), size=5)
    for moment in [moments[number] for number in tried]:
        shutil.rmtree(run.path)
        child = os.fork()
        if not child:
            with contextlib.suppress(BaseException):
                unlearn(**job)
            os._exit(0)
        time.sleep(moment)
        os.kill(child, signal.SIGKILL)
        killed += os.WIFSIGNALED(os.waitpid(child, 0)[1])
        finished += look(run, expected)
        assert look(unlearn(**job), expected)
    assert killed > len(tried) / 2
    assert finished < len(tried)
