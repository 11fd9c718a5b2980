"""Run by each of two processes: evaluates a run, and writes down what this process forwarded and kept.

``evaluate_worker.py FOLDER MODE`` with the keys of `evaluate` in FOLDER/keys.json. MODE: ``whole``; ``kill`` ends every
process with SIGKILL when all have kept six records; ``fail`` first gives process 1 other rows to forget, and then lets
it run into a full disk.
"""

import functools
import json
import os
import signal
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import LlamaForCausalLM

from llm_forget.evals.records import Record, RecordWriter
from llm_forget.models.adapters.logit_fingerprint import probe_ids
from llm_forget.workflows.evaluate import evaluate

FORWARDED = {"tokens": 0, "prompts": 0}
KEPT: list[list[Any]] = []
MADE_UP = 12  # largest token of the rows on which a shortcut is tried; letters are beyond


def watching(forward: Callable[..., Any], note: Callable[[Any, str, int], None]) -> Callable[..., Any]:
    """A Llama's forward that notes ``tokens``, targets of teacher-forced rows, and ``prompts`` to continue."""

    @functools.wraps(forward)  # whose signature generate() reads
    def watched(model: Any, input_ids: Any = None, past_key_values: Any = None, **given: Any) -> Any:
        decoding = past_key_values is not None and past_key_values.get_seq_length() > 0
        out = forward(model, input_ids=input_ids, past_key_values=past_key_values, **given)
        probing = input_ids.tolist() == probe_ids(model.config.vocab_size)  # of an adapter's effect, when it is loaded
        if not decoding and not probing and input_ids.max() > MADE_UP:
            if past_key_values is not None:
                note(model, "prompts", len(input_ids))
            else:  # rows may lie end to end and share their beginnings; logits are made for targets only
                note(model, "tokens", out.logits.shape[:-1].numel())
        return out

    return watched


def watched(mode: str) -> None:
    """Count what goes through a model and records that are kept, and come to the end that ``mode`` asks for."""
    append = RecordWriter.append

    def count(_: Any, kind: str, number: int) -> None:
        FORWARDED[kind] += number

    def keeping(writer: RecordWriter, records: Iterable[Record]) -> None:
        records = list(records)
        append(writer, records)
        KEPT.extend([writer.path.name, *record.key] for record in records)
        if mode == "kill" and len(KEPT) >= 6:
            PartialState().wait_for_everyone()
            os.kill(os.getpid(), signal.SIGKILL)
        if mode == "fail" and PartialState().process_index == 1:
            raise OSError("no space left for records of process 1")

    LlamaForCausalLM.forward = watching(LlamaForCausalLM.forward, count)
    RecordWriter.append = keeping


def main(folder: Path, mode: str) -> None:
    FORWARDED.update(tokens=0, prompts=0)
    KEPT.clear()
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


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
