"""One process works for long: the others wait for its result without a collective, or learn that it failed."""

import json
import time
from pathlib import Path

import pytest

from llm_forget.core.errors import RunError
from llm_forget.training.distillation.long_wait import from_main_process
from tests.support.forked import forked_world

SHORT = 1.0  # seconds after which a collective of these processes gives up


def join(seconds: float) -> None:
    """Join a world whose collectives time out soon, as NCCL's do after ten minutes."""
    from datetime import timedelta

    from accelerate import PartialState

    PartialState(cpu=True, backend="gloo", timeout=timedelta(seconds=seconds))


@pytest.mark.slow
def test_the_others_wait_longer_than_a_collective_may_take_and_get_the_result(tmp_path: Path, libraries: None) -> None:
    def work() -> dict[str, int]:
        time.sleep(3 * SHORT)
        return {"answer": 42}

    def wait(rank: int) -> None:
        join(SHORT)
        (tmp_path / f"{rank}.json").write_text(json.dumps(from_main_process(work, tmp_path, "the teacher")))

    for process in forked_world(2, wait):
        assert process.returncode == 0, process.stderr[-2000:]
    assert [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)] == [{"answer": 42}] * 2
    assert not list(tmp_path.glob(".*")), "the marker file is removed"


@pytest.mark.slow
def test_the_others_end_when_the_main_process_fails(tmp_path: Path, libraries: None) -> None:
    def work() -> None:
        raise ZeroDivisionError

    def wait(rank: int) -> None:
        join(60)
        with pytest.raises(RunError if rank else ZeroDivisionError, match="failed in the teacher" if rank else ""):
            from_main_process(work, tmp_path, "the teacher")

    for process in forked_world(2, wait):
        assert process.returncode == 0, process.stderr[-2000:]


def test_one_process_works_alone_and_leaves_no_file(tmp_path: Path) -> None:
    assert from_main_process(lambda: 7, tmp_path / "missing", "the teacher") == 7
    assert not (tmp_path / "missing").exists()
