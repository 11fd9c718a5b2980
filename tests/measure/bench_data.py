"""Seconds and peak memory of the way from a file to the first batches, by number of rows; not a test.

    python tests/measure/bench_data.py [--rows 10000 100000 1000000] [--processes 1] [--format jsonl] [--model MODEL]

Each size runs in a process of its own: N retain rows and N / 10 rows to forget are made in a temporary folder, read,
checked, tokenised, described, compared, put in order and read. Memory is that of this process above what the imports
took, sampled every 50 ms: `resident` with memory-mapped pages of files, which the system takes back when it needs to,
and `own` without them. CPU seconds are of this process and its workers. Prints one JSON object a line.
"""

import argparse
import csv
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

WORDS = [a + b for a in ("ka", "lo", "mi", "ter", "san", "vel") for b in ("ran", "del", "ino", "bor", "eth", "ash")]
GIB = 2**30


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--format", choices=("jsonl", "json", "csv", "parquet"), default="jsonl")
    parser.add_argument(
        "--ids", action="store_true", help="rows bring ids; otherwise these are made from their content"
    )
    parser.add_argument("--model", default="builtin:smollm2-135m")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure is not None:
        print(json.dumps(measure(given.measure, given.model, given.processes)), flush=True)
        return
    for rows in given.rows:
        with tempfile.TemporaryDirectory() as folder:
            for split, count in (("retain", rows), ("forget", rows // 10)):
                write_rows(Path(folder) / f"{split}.{given.format}", question_rows(count, split, given.ids))
            command = [sys.executable, __file__, "--measure", folder, "--model", given.model]
            subprocess.run([*command, "--processes", str(given.processes)], check=True)


def question_rows(count: int, split: str, with_ids: bool) -> Iterator[dict[str, str]]:
    rng = random.Random(split)
    for number in range(count):
        name = " ".join(rng.choices(WORDS, k=2)).title()
        row = {
            "question": f"What did {name} of house {split} {number} write in the year {rng.randint(1800, 2020)}?",
            "answer": f"{name} wrote {' '.join(rng.choices(WORDS, k=12))}.",
        }
        yield ({"id": f"{split}-{number}"} if with_ids else {}) | row


def write_rows(path: Path, rows: Iterator[dict[str, str]]) -> None:
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)
        return
    with path.open("w", newline="") as file:
        if path.suffix == ".jsonl":
            file.writelines(json.dumps(row) + "\n" for row in rows)
        elif path.suffix == ".json":
            file.write("[" + ",\n".join(map(json.dumps, rows)) + "]")
        else:
            first = next(rows)
            writer = csv.DictWriter(file, list(first))
            writer.writeheader()
            writer.writerows([first])
            writer.writerows(rows)


def measure(folder: Path, model: str, processes: int) -> dict[str, Any]:
    from trl import ModelConfig

    from llm_forget.data.rows import check_overlap
    from llm_forget.data.sources import load_source
    from llm_forget.data.template import template_for
    from llm_forget.data.tokenise import tokenise_dataset
    from llm_forget.models.load import load_tokenizer
    from llm_forget.training.provenance import describe
    from llm_forget.training.reference import cache_file
    from llm_forget.training.row_stream import RankBatches, StepSampler
    from llm_forget.training.trainer import UnlearnTrainer  # noqa: F401 - the imports of a training run

    tokenizer = load_tokenizer(ModelConfig(model_name_or_path=model))
    template = template_for(tokenizer)
    files = {split: str(next(folder.glob(f"{split}.*"))) for split in ("forget", "retain")}
    seconds: dict[str, float] = {}
    cpu: dict[str, float] = {}
    after: dict[str, float] = {}
    memory = Memory()

    @contextmanager
    def stage(name: str) -> Iterator[None]:
        began, used = time.perf_counter(), cpu_seconds()
        yield
        seconds[name], cpu[name] = round(time.perf_counter() - began, 2), round(cpu_seconds() - used, 2)
        after[name] = memory.gib("VmRSS")
        print(f"{name}: {seconds[name]} s, {cpu[name]} CPU s, {after[name]} GiB", file=sys.stderr, flush=True)

    with stage("read and check"):
        rows = {split: load_source(file, split_name=split) for split, file in files.items()}
    with stage("overlap"):
        check_overlap(rows["forget"], rows["retain"])
    with stage("tokenise"):
        splits = {name: tokenise_dataset(part, tokenizer, template, num_proc=processes) for name, part in rows.items()}
    with stage("describe"):
        facts = {name: describe(name, part) for name, part in splits.items()}
    with stage("name the reference cache"):
        import numpy as np

        cache_file("model", splits["retain"], np.arange(len(splits["retain"])))
    with stage("first batches"):
        sizes = {name: len(part) for name, part in splits.items()}
        batches = RankBatches(StepSampler(sizes, batch_size=8), 8)
        for _, batch in zip(range(100), batches, strict=False):
            for slot in batch:
                {name: splits[name][place]["input_ids"] for name, place in slot.items() if place >= 0}
    rows_in_all = sum(sizes.values())
    return {
        **sizes,
        "processes": processes,
        "seconds": seconds,
        "cpu_seconds": cpu,
        "total_seconds": round(sum(seconds.values()), 1),
        "total_cpu_seconds": round(sum(cpu.values()), 1),
        "rows_per_second": round(rows_in_all / sum(seconds.values())),
        "rows_per_cpu_second": round(rows_in_all / sum(cpu.values())),
        "resident_gib": memory.gib("VmRSS"),
        "own_gib": memory.gib("RssAnon"),
        "resident_after_gib": after,
        "imports_gib": round(memory.before["VmRSS"] / GIB, 3),
        "digests": {name: fact["digest"][:19] for name, fact in facts.items()},
    }


class Memory:
    """The most memory since it was made, bytes: resident, and anonymous alone. Linux only."""

    NAMES = ("VmRSS", "RssAnon")

    def __init__(self) -> None:
        self.before = self._now()
        self.peak = dict(self.before)
        threading.Thread(target=self._watch, daemon=True).start()

    def gib(self, name: str) -> float:
        return round((self.peak[name] - self.before[name]) / GIB, 3)

    def _watch(self) -> None:
        while True:
            self.peak = {name: max(self.peak[name], now) for name, now in self._now().items()}
            time.sleep(0.05)

    def _now(self) -> dict[str, int]:
        lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
        return {line[0][:-1]: int(line[1]) * 1024 for line in lines if line[0][:-1] in self.NAMES}


def cpu_seconds() -> float:
    return sum(os.times()[:4])


if __name__ == "__main__":
    main()
