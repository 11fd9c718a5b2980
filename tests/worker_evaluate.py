"""Run by each of two processes: evaluates a run, and writes down what this process forwarded and kept.

``worker_evaluate.py FOLDER MODE`` with the keys of `evaluate` in FOLDER/keys.json. MODE: ``whole``; ``kill`` ends every
process with SIGKILL when all have kept six records; ``fail`` first gives process 1 other rows to forget, and then lets
it run into a full disk.
"""

import json
import os
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from accelerate import PartialState

from llm_forget.evals import gradient_probe, probes
from llm_forget.evals.records import Record, RecordWriter
from llm_forget.evaluate import evaluate

FORWARDED = {"rows": 0}
KEPT: list[list[Any]] = []


def watched(mode: str) -> None:
    """Count rows that go through a model and records that are kept, and come to the end that ``mode`` asks for."""
    forward, append = probes.forward_logprobs, RecordWriter.append

    def counting(model: Any, inputs: Any, **given: Any) -> Any:
        FORWARDED["rows"] += len(inputs["input_ids"])
        return forward(model, inputs, **given)

    def keeping(writer: RecordWriter, records: Iterable[Record]) -> None:
        records = list(records)
        append(writer, records)
        KEPT.extend([writer.path.name, *record.key] for record in records)
        if mode == "kill" and len(KEPT) >= 6:
            PartialState().wait_for_everyone()
            os.kill(os.getpid(), signal.SIGKILL)
        if mode == "fail" and PartialState().process_index == 1:
            raise OSError("no space left for records of process 1")

    probes.forward_logprobs = gradient_probe.forward_logprobs = counting
    RecordWriter.append = keeping


if __name__ == "__main__":
    folder, mode = Path(sys.argv[1]), sys.argv[2]
    PartialState(cpu=True)
    watched(mode)
    keys = json.loads((folder / "keys.json").read_text())
    if mode == "fail":
        other = {"forget": keys["retain"]} if PartialState().process_index == 1 else {}
        try:
            evaluate(**{**keys, **other}, quiet=True)
        except ValueError as error:
            sys.stdout.write(f"process {PartialState().process_index} says: {error}\n")
            sys.stdout.flush()
    results = evaluate(**keys, quiet=True)
    facts = {"processes": PartialState().num_processes, "kept": KEPT, "results": results, **FORWARDED}
    (folder / f"facts-{PartialState().process_index}.json").write_text(json.dumps(facts))
