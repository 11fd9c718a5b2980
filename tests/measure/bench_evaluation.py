"""What teacher-forced evaluation costs; not a test.

    python tests/measure/bench_evaluation.py MODEL DATA_FOLDER [ROUNDS]
    python tests/measure/bench_evaluation.py MODEL DATA_FOLDER ROUNDS --suite [SHARE]

DATA_FOLDER holds the files of TOFU.

The first: interleaved rounds over forget01 in one process: (a) the model's plain forward, all logits, same batches;
(b) our probe with its records written; (c) the whole set of teacher-forced metrics on them. Medians, range, and the
ratio (b + c) / a.

The second: the teacher-forced part of the suite `tofu`, on the given share of each split's questions (1: all), ours
beside one forward pass per metric, interleaved in one process. Ours: each probe once, records written and read, and
all lines that need no generated text, with their intervals. The other way is what the field's evaluator does
(locuslab/open-unlearning at d3d7cf9, src/evals): rows in file order, 32 at a time, padded to the longest of them,
labels given to the model, logits and log-softmax of every position, each metric its own forward. Three counts of it:

- `default`: the metrics switched on in its configs/eval/tofu.yaml, each of which forwards its splits once; the
  probabilities behind truth ratios, which several metrics share, are computed once;
- `all`: with those that stand there in comments and that this suite measures in any case (exact memorization, three
  more membership attacks; Min-K %++ makes two forwards);
- `per metric`: as `all`, but nothing is shared: each line of this suite passes over the splits it is made of.

Tokenisation is left out on both sides. Each pass is timed once a round, and a count adds up the passes it is made of.
"""

import argparse
import statistics
import tempfile
import time
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from trl import ModelConfig

from llm_forget.data.sources import load_source
from llm_forget.data.template import template_for
from llm_forget.evals.compute_metrics import compute_lines
from llm_forget.evals.metrics import METRICS
from llm_forget.evals.probes.inputs import Work, prepare
from llm_forget.evals.probes.probes import TokenRow, probe_logprobs
from llm_forget.evals.records import RecordWriter
from llm_forget.evals.suite import Line, Probe, Suite, load_suite
from llm_forget.logprobs.batches import collate
from llm_forget.models.load import load_base, load_tokenizer

BATCH = 8
THEIR_BATCH = 32  # eval.tofu.batch_size
IGNORE = -100

# (probe of ours with the same rows, what is made of the logits), for each metric that forwards.
PROBABILITIES = [
    ("forget", "loss"), ("forget_paraphrase", "loss"), ("forget_perturbed", "loss"),
    ("retain", "loss"), ("retain_paraphrase", "loss"), ("retain_perturbed", "loss"),
    ("authors", "loss"), ("authors_perturbed", "loss"), ("facts", "loss"), ("facts_perturbed", "loss"),
]  # fmt: skip
DEFAULT = [*PROBABILITIES, ("forget", "extraction"), ("forget", "min_k"), ("holdout", "min_k")]
ALL = [
    *DEFAULT, ("forget", "exact"),
    *((split, attack) for split in ("forget", "holdout") for attack in ("mia_loss", "zlib", "min_k_plus_plus")),
]  # fmt: skip
# Truth ratio of forget and its other two summaries; of retain; probability and truth ratio of authors and of facts.
AGAIN = [
    *2 * [("forget_paraphrase", "loss"), ("forget_perturbed", "loss")], ("forget_paraphrase", "loss"),
    ("authors", "loss"), ("authors_perturbed", "loss"), ("facts", "loss"), ("facts_perturbed", "loss"),
]  # fmt: skip
COUNTS = {"default": DEFAULT, "all": ALL, "per metric": [*ALL, *AGAIN]}


def main(name: str, folder: str, rounds: int = 5) -> None:
    model, tokenizer = _load(name)
    work = _work(Probe(name="forget", probe="logprobs", split="forget"), "forget01", folder, tokenizer)
    longest = sorted(work.token_rows, key=lambda row: -len(row.input_ids))
    tokens = sum(len(row.input_ids) for row in longest)
    plain, ours, metrics = [], [], []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        with torch.inference_mode():
            for batch in _batches(longest, BATCH):
                model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        plain.append(time.perf_counter() - began)
        began = time.perf_counter()
        records = _records(model, work, batch_size=BATCH)
        ours.append(time.perf_counter() - began)
        began = time.perf_counter()
        for metric in ("probability", "exact_memorization", "extraction_strength", "discoverable_extraction"):
            METRICS.get(metric).bind()(records)
        for attack in ("loss", "min_k", "min_k_plus_plus"):
            METRICS.get("membership_auc").bind(attack=attack)(records, records)
        metrics.append(time.perf_counter() - began)
    print(f"{name}: {len(longest)} rows, {tokens} tokens, {rounds} rounds, {torch.get_num_threads()} threads")
    for label, times in (("plain forward", plain), ("probe", ours), ("metrics", metrics)):
        _show(label, times[1:], "s")  # the first round warms up
    _show("ratio", [(b + c) / a for a, b, c in zip(plain[1:], ours[1:], metrics[1:], strict=True)], "")


def compare(name: str, folder: str, rounds: int, share: float) -> None:
    model, tokenizer = _load(name)
    suite = _without_text(load_suite("tofu"))
    sources = {"forget": "forget10", "forget_perturbed": "forget10_perturbed"}
    sources |= {split: source["name"] for split, source in suite.data.items()}
    works = {}
    for probe in suite.probes.values():
        rows = len(_rows(sources[probe.split], folder))
        limited = replace(probe, limit=max(1, round(share * rows)))
        works[probe.name] = _work(limited, sources[probe.split], folder, tokenizer)
    counted = {
        label: sum(len(works[split].token_rows) * (2 if kind == "min_k_plus_plus" else 1) for split, kind in passes)
        for label, passes in COUNTS.items()
    }
    own = sum(len(work.token_rows) for work in works.values())
    print(f"{name}: {share:g} of TOFU's questions, {rounds} rounds, {torch.get_num_threads()} threads")
    print(f"  sequences forwarded: ours {own}, " + ", ".join(f"{label} {n}" for label, n in counted.items()))
    _check_equal(model, works["forget"], tokenizer)
    ours, theirs = [], {label: [] for label in COUNTS}
    for _ in range(rounds + 1):
        began = time.perf_counter()
        records = {label: _records(model, work, batch_size=64) for label, work in works.items()}
        compute_lines(suite, records)
        ours.append(time.perf_counter() - began)
        passes = {one: _timed(_field_pass, model, works[one[0]], one[1], tokenizer) for one in dict.fromkeys(ALL)}
        for label, parts in COUNTS.items():
            theirs[label].append(sum(passes[one] for one in parts))
    _show("ours", ours[1:], "s")
    for label, times in theirs.items():
        _show(label, times[1:], "s")
        _show("  ratio", [b / a for a, b in zip(ours[1:], times[1:], strict=True)], "")


def _check_equal(model: Any, work: Work, tokenizer: Any) -> None:
    """Both ways must measure the same before their times are compared."""
    records = _records(model, work, batch_size=64)
    theirs = _field_pass(model, work, "loss", tokenizer)
    error = max(abs(loss + record.logps.mean()) for loss, record in zip(theirs, records, strict=True))
    print(f"  largest difference of a row's mean NLL between both ways: {error:.1e}")
    assert error < (1e-3 if model.dtype == torch.float32 else 0.1)


def _load(name: str) -> tuple[Any, Any]:
    arguments = ModelConfig(model_name_or_path=name)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return load_base(arguments).to(device).eval(), load_tokenizer(arguments)


def _rows(name: str, folder: str) -> list[Any]:
    return list(load_source({"path": "locuslab/TOFU", "name": name}, split_name="x", data_path=folder))


def _work(probe: Probe, source: str, folder: str, tokenizer: Any) -> Work:
    return prepare(probe, _rows(source, folder), tokenizer, template_for(tokenizer), max_length=None, stride=0)


def _records(model: Any, work: Work, *, batch_size: int) -> list[Any]:
    with tempfile.TemporaryDirectory() as scratch:
        writer = RecordWriter(Path(scratch) / "records.jsonl", "logprobs", "key", work.keys)
        probe_logprobs(model, work.token_rows, writer, batch_size=batch_size)
        return [replace(record, zlib_bytes=work.zlib_bytes[record.key]) for record in writer.finish()]


def _without_text(suite: Suite) -> Suite:
    """The suite's teacher-forced probes, and the lines that need nothing else."""
    probes = {name: probe for name, probe in suite.probes.items() if probe.probe == "logprobs"}
    known, lines = set(probes), []
    for line in suite.lines:
        if _inputs(line) <= known and not line.other_inputs:
            known.add(line.name)
            lines.append(line)
    return replace(suite, probes=probes, lines=tuple(lines))


def _inputs(line: Line) -> set[str]:
    return {name for given in line.inputs.values() for name in ([given] if isinstance(given, str) else given)}


def _field_pass(model: Any, work: Work, kind: str, tokenizer: Any) -> list[float]:
    """One metric's own pass over a split: the first answers of all rows, then the second ones."""
    scores = []
    for answer in sorted({row.answer_index for row in work.token_rows}):
        rows = [row for row in work.token_rows if row.answer_index == answer]
        for batch in _batches(rows, THEIR_BATCH, model.device):
            with torch.no_grad():
                scores += SCORES[kind](model, batch, tokenizer)
    return scores


def _mean_losses(model: Any, batch: dict[str, Tensor], _: Any) -> list[float]:
    logits, labels = model(**batch).logits[:, :-1], batch["labels"][:, 1:]  # [B, S - 1, V], [B, S - 1]
    losses = torch.nn.functional.cross_entropy(
        logits.transpose(1, 2), labels, ignore_index=IGNORE, reduction="none"
    )  # [B, S - 1]
    return (losses.sum(-1) / (labels != IGNORE).sum(-1)).tolist()


def _over_zlib(model: Any, batch: dict[str, Tensor], tokenizer: Any) -> list[float]:
    answers = [tokenizer.decode(row[row != IGNORE], skip_special_tokens=True) for row in batch["labels"]]
    losses = _mean_losses(model, batch, tokenizer)
    return [loss / len(zlib.compress(text.encode())) for loss, text in zip(losses, answers, strict=True)]


def _over_vocabulary(model: Any, batch: dict[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Log-probs ``[n, V]`` and labels ``[n]`` of each row."""
    logps = model(**batch).logits.log_softmax(-1)[:, :-1]  # [B, S - 1, V]
    targets = batch["labels"][:, 1:]
    return [(logps[i, targets[i] != IGNORE], targets[i][targets[i] != IGNORE]) for i in range(len(targets))]


def _exact(model: Any, batch: dict[str, Tensor], _: Any) -> list[float]:
    return [float((logps.argmax(-1) == labels).float().mean()) for logps, labels in _over_vocabulary(model, batch)]


def _extraction(model: Any, batch: dict[str, Tensor], _: Any) -> list[float]:
    found = []
    for logps, labels in _over_vocabulary(model, batch):
        guesses = logps.argmax(-1)
        start = next((k for k in range(len(labels)) if torch.equal(guesses[k:], labels[k:])), len(labels))
        found.append(1 - start / max(1, len(labels)))
    return found


def _lowest(values: Tensor) -> float:
    return float(values.sort().values[: max(1, int(0.4 * len(values)))].mean())


def _golden(model: Any, batch: dict[str, Tensor]) -> list[Tensor]:
    return [logps.gather(-1, labels[:, None])[:, 0] for logps, labels in _over_vocabulary(model, batch)]


def _min_k(model: Any, batch: dict[str, Tensor], _: Any) -> list[float]:
    return [-_lowest(values) for values in _golden(model, batch)]


def _min_k_plus_plus(model: Any, batch: dict[str, Tensor], _: Any) -> list[float]:
    found = []
    for (logps, _labels), values in zip(_over_vocabulary(model, batch), _golden(model, batch), strict=True):
        mean = (logps.exp() * logps).sum(-1)
        variance = (logps.exp() * logps.square()).sum(-1) - mean.square()
        found.append(-_lowest((values - mean) / variance.clamp(min=1e-6).sqrt()))
    return found


SCORES: dict[str, Callable[[Any, dict[str, Tensor], Any], list[float]]] = {
    "loss": _mean_losses, "mia_loss": _mean_losses, "zlib": _over_zlib, "exact": _exact, "extraction": _extraction,
    "min_k": _min_k, "min_k_plus_plus": _min_k_plus_plus,
}  # fmt: skip


def _batches(rows: list[TokenRow], size: int, device: Any = "cpu") -> Any:
    """Rows as they come, right-padded: ``input_ids``, ``attention_mask``, ``labels`` ``[B, S]``."""
    for start in range(0, len(rows), size):
        batch = collate([vars(row) for row in rows[start : start + size]], 0)
        yield {name: batch[name].to(device) for name in ("input_ids", "attention_mask", "labels")}


def _timed(function: Callable[..., Any], *given: Any) -> float:
    began = time.perf_counter()
    function(*given)
    return time.perf_counter() - began


def _show(label: str, values: list[float], unit: str) -> None:
    print(f"  {label:14} {statistics.median(values):8.3f} {unit}  ({min(values):.3f}-{max(values):.3f})")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("folder")
    parser.add_argument("rounds", type=int, nargs="?", default=5)
    parser.add_argument("--suite", type=float, nargs="?", const=1.0, metavar="SHARE")
    asked = parser.parse_args()
    if asked.suite is None:
        main(asked.model, asked.folder, asked.rounds)
    else:
        compare(asked.model, asked.folder, asked.rounds, asked.suite)
