"""One probe shared out over the processes of ``accelerate launch``; with one process all of this does nothing.

Every process measures its share of the missing records and keeps them at once in a partial file of its own. Then all
processes hold all records, each key once: nothing is padded, and what is gathered are records, not tensors. Correctness
does not rest on a shared file system; what was measured before a kill is found again on whatever machine it lies.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

from llm_forget.core.errors import EvaluationError
from llm_forget.core.launch import USE_CPU, check_launch, refuse_sharded_models
from llm_forget.evals.probes.inputs import Work
from llm_forget.evals.records import Key, RecordWriter

Value = TypeVar("Value")
# How long processes wait for one that measures the rest of its share or computes metrics; NCCL's default is 10 minutes.
PATIENCE = timedelta(days=1)


def start_processes(*, use_cpu: bool) -> PartialState:
    """The processes of this launch, one where there is none; on CPUs if asked for here or by the launch.

    Raises:
        ValueError: they are others than were asked for, or the launch cuts models into pieces.
    """
    # Accelerate looks at this variable itself only when it trains.
    use_cpu = use_cpu or os.environ.get(USE_CPU, "false").lower() == "true"
    state = PartialState(cpu=use_cpu, timeout=PATIENCE)
    check_launch(state)
    if state.num_processes > 1:
        refuse_sharded_models(os.environ)
    return state


def from_main_process(value: Value) -> Value:
    """What the main process has, on all processes; every process must call it."""
    return broadcast_object_list([value])[0]


def refuse_different_keys(key: str) -> None:
    """Refuse, on all processes, to share out what is not one and the same; every process must call it.

    Raises:
        ValueError: a process has other rows, another model or another tokenizer than the main process.
    """
    keys = gather_object([key])
    others = [str(rank) for rank, theirs in enumerate(keys) if theirs != keys[0]]
    if others:
        raise EvaluationError(
            f"processes {', '.join(others)} would measure other rows or another model than process 0; give every "
            "machine the same data, model and run"
        )


def open_share(path: Path, kind: str, key: str, work: Work) -> RecordWriter:
    """A writer that knows what any process found on disk, and is to measure this process's share of the rest."""
    state = PartialState()
    writer = RecordWriter(path, kind, key, work.keys, rank=state.process_index)
    # One process of each machine speaks for its disk. Nobody appends before all have read.
    writer.add(gather_object(writer.known() if state.is_local_main_process else []))
    missing = writer.missing()
    lengths = {place: length for place, length in tokens(work).items() if place in missing}
    writer.take(divide(lengths, state.num_processes)[state.process_index])
    return writer


def close_share(writer: RecordWriter) -> list[Any]:
    """All records in the expected order, on all processes; the main process puts the complete file in place."""
    state = PartialState()
    writer.add(gather_object(writer.own()))
    if state.is_main_process:
        writer.finish()
    state.wait_for_everyone()
    # Partial files on other machines; until the complete file is there, they are all there is.
    if state.is_local_main_process:
        writer.clear()
    return writer.ordered()


def tokens(work: Work) -> dict[Key, int]:
    """Input tokens of every record, over all of its windows."""
    lengths = dict.fromkeys(work.keys, 0)
    for row in work.token_rows:
        lengths[row.key] += len(row.input_ids)
    for prompt in work.prompt_rows:
        lengths[prompt.key] += len(prompt.prompt_ids)
    return lengths


def divide(lengths: Mapping[Key, int], processes: int) -> list[list[Key]]:
    """Keys for each process: dealt out one by one, longest first; equal lengths in the order given."""
    queue = sorted(lengths, key=lengths.__getitem__, reverse=True)
    return [queue[rank::processes] for rank in range(processes)]
