"""What the teacher-forced metrics cost beside one plain forward pass over the same tokens; not a test.

    python tests/bench_evaluation.py MODEL DATA_FOLDER [ROUNDS]      (DATA_FOLDER holds TOFU's forget01.json)

Interleaved rounds in one process: (a) the model's plain forward, all logits, same batches; (b) our probe with its
records written; (c) the whole set of teacher-forced metrics on them. Prints medians, range, and the ratio (b + c) / a.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from trl import ModelConfig

from llm_forget.data.sources import load_source
from llm_forget.data.template import template_for
from llm_forget.evals.metrics import METRICS
from llm_forget.evals.probes import probe_logprobs
from llm_forget.evals.records import RecordWriter
from llm_forget.evals.rows import prepare
from llm_forget.evals.suite import Probe
from llm_forget.models import load_base, load_tokenizer

BATCH = 8


def main(name: str, folder: str, rounds: int = 5) -> None:
    arguments = ModelConfig(model_name_or_path=name)
    model, tokenizer = load_base(arguments).eval(), load_tokenizer(arguments)
    rows = list(load_source({"path": "locuslab/TOFU", "name": "forget01"}, split_name="forget", data_path=folder))
    probe = Probe(name="forget", probe="logprobs", split="forget")
    work = prepare(probe, rows, tokenizer, template_for(tokenizer), max_length=None, stride=0)
    longest = sorted(work.token_rows, key=lambda row: -len(row.input_ids))
    tokens = sum(len(row.input_ids) for row in longest)
    plain, ours, metrics = [], [], []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        with torch.inference_mode():
            for start in range(0, len(longest), BATCH):
                batch = longest[start : start + BATCH]
                width = len(batch[0].input_ids)
                ids = torch.tensor([row.input_ids + [0] * (width - len(row.input_ids)) for row in batch])
                mask = torch.tensor([[1] * len(row.input_ids) + [0] * (width - len(row.input_ids)) for row in batch])
                model(input_ids=ids, attention_mask=mask)
        plain.append(time.perf_counter() - began)
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as scratch:
            writer = RecordWriter(Path(scratch) / "forget.jsonl", "logprobs", "key", work.keys)
            probe_logprobs(model, work.token_rows, writer, batch_size=BATCH)
            records = writer.finish()
        ours.append(time.perf_counter() - began)
        began = time.perf_counter()
        for metric in ("probability", "exact_memorization", "extraction_strength", "discoverable_extraction"):
            METRICS.get(metric).bind()(records)
        for attack in ("loss", "min_k", "min_k_plus_plus"):
            METRICS.get("membership_auc").bind(attack=attack)(records, records)
        metrics.append(time.perf_counter() - began)
    # The first round warms up.
    medians = [statistics.median(times[1:]) for times in (plain, ours, metrics)]
    ratios = [(b + c) / a for a, b, c in zip(plain[1:], ours[1:], metrics[1:], strict=True)]
    print(f"{name}: {len(rows)} rows, {tokens} tokens, {rounds} rounds, {torch.get_num_threads()} threads")
    labels = ("plain forward", "probe", "metrics")
    for label, times, median in zip(labels, (plain, ours, metrics), medians, strict=True):
        print(f"  {label:14} {median:7.3f} s  ({min(times[1:]):.3f}-{max(times[1:]):.3f})")
    print(f"  ratio          {statistics.median(ratios):7.2f}    ({min(ratios):.2f}-{max(ratios):.2f})")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *(int(n) for n in sys.argv[3:]))
