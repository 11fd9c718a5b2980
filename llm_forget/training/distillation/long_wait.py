"""Let the main process work for a long time while all others wait without a collective, which would time out."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from llm_forget.core.errors import RunError
from llm_forget.core.files import write_atomic

logger = logging.getLogger("llm_forget")
Result = TypeVar("Result")

POLL = 0.2  # seconds between two looks at the marker file
PROGRESS = 60.0  # seconds between two lines of the log


def from_main_process(work: Callable[[], Result], folder: Path, what: str) -> Result:
    """Call ``work`` on the main process, and return its result on all processes.

    The other processes wait for a marker file in ``folder``, which all processes share. In a barrier or broadcast, NCCL
    would end the run after ten minutes. If the main process fails, the others raise RunError. ``what`` names the work
    in the log, such as "the teacher".
    """
    state = PartialState()
    if state.num_processes == 1:
        return work()
    names = [uuid.uuid4().hex]  # a marker of an earlier launch has another name
    broadcast_object_list(names)
    marker = folder / f".{names[0]}.done"
    results: list[Result | None] = [None]
    if state.is_main_process:
        text = "failed"
        try:
            results, text = [work()], "done"
        finally:
            write_atomic(marker, text)
    else:
        _wait(marker, what, speaks=state.process_index == 1)
    broadcast_object_list(results)
    state.wait_for_everyone()
    if state.is_main_process:
        marker.unlink()
    return results[0]  # type: ignore[return-value]  # the broadcast filled it


def _wait(marker: Path, what: str, *, speaks: bool) -> None:
    began = last_line = time.monotonic()
    while not marker.is_file():
        time.sleep(POLL)
        if speaks and (now := time.monotonic()) - last_line >= PROGRESS:
            last_line = now
            logger.info("waiting for %s on the main process, %.0f s", what, now - began)
    if marker.read_text(encoding="utf-8") != "done":
        raise RunError(f"the main process failed in {what}; see its error")
