"""Distribute a probe over the processes of ``accelerate launch``.

Every process measures its share of the missing records, and writes each record to its partial file at once. Then all
processes exchange their records. They need no shared file system, because each machine sends the records on its disk.
"""

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
# How long a process waits for others to measure or to compute metrics; NCCL's default is 10 minutes.
PATIENCE = timedelta(days=1)


def start_processes(*, use_cpu: bool) -> PartialState:
    """Initialise the processes of this launch. They use the CPU if ``use_cpu`` is true or the launch requests it.

    Raises LlmForgetError if the launch does not match its settings, or if it shards models.
    """
    # Accelerate reads this variable only for training.
    use_cpu = use_cpu or os.environ.get(USE_CPU, "false").lower() == "true"
    state = PartialState(cpu=use_cpu, timeout=PATIENCE)
    check_launch(state)
    if state.num_processes > 1:
        refuse_sharded_models(os.environ)
    return state


def from_main_process(value: Value) -> Value:
    """Return the value of the main process on all processes. Every process must call this function."""
    return broadcast_object_list([value])[0]


def refuse_different_keys(key: str) -> None:
    """Raise EvaluationError on all processes if their content keys differ. Every process must call this function."""
    keys = gather_object([key])
    others = [str(rank) for rank, theirs in enumerate(keys) if theirs != keys[0]]
    if others:
        raise EvaluationError(
            f"processes {', '.join(others)} would measure other rows or another model than process 0; give every "
            "machine the same data, model and run"
        )


def open_share(path: Path, kind: str, key: str, work: Work) -> RecordWriter:
    """Return a writer for this process's share of the missing records. The writer already contains the records that are
    on the disks of all processes.
    """
    state = PartialState()
    writer = RecordWriter(path, kind, key, work.keys, rank=state.process_index)
    # One process per machine sends what it read. The gather also ensures that all have read before one appends.
    writer.add(gather_object(writer.available() if state.is_local_main_process else []))
    missing = writer.missing()
    lengths = {place: length for place, length in tokens(work).items() if place in missing}
    writer.restrict_to(divide(lengths, state.num_processes)[state.process_index])
    return writer


def close_share(writer: RecordWriter) -> list[Any]:
    """Return all records in the expected order, on all processes. The main process writes the complete file."""
    state = PartialState()
    writer.add(gather_object(writer.measured()))
    if state.is_main_process:
        writer.finish()
    state.wait_for_everyone()
    # Delete partial files, on each machine, only after the complete file is written.
    if state.is_local_main_process:
        writer.clear()
    return writer.ordered()


def tokens(work: Work) -> dict[Key, int]:
    """Map the key of each record to its number of input tokens, summed over the windows of the record."""
    lengths = dict.fromkeys(work.keys, 0)
    for row in work.token_rows:
        lengths[row.key] += len(row.input_ids)
    for prompt in work.prompt_rows:
        lengths[prompt.key] += len(prompt.prompt_ids)
    return lengths


def divide(lengths: Mapping[Key, int], processes: int) -> list[list[Key]]:
    """Deal the keys to the processes in turn, longest first, and return a list of keys for each process."""
    queue = sorted(lengths, key=lengths.__getitem__, reverse=True)
    return [queue[rank::processes] for rank in range(processes)]
