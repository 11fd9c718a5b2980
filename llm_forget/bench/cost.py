"""Estimate the cost of unlearning relative to retraining without the forget rows, from the times of single steps."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from datasets import Dataset

from llm_forget.bench.compared_steps import FINETUNE, Variant, begin
from llm_forget.bench.interleaved_timing import seconds_of
from llm_forget.core.config import TrainConfig


def reference_passes(variants: Mapping[str, Variant], device: torch.device) -> dict[str, dict[str, float]]:
    """Time the pass over the benchmark rows that computes reference log-probs. Return its ``seconds`` and ``tokens`` by
    method. Methods without such a pass are left out.
    """
    passes = {}
    for name, variant in variants.items():
        if variant.trainer is not None and variant.objective is not None and variant.objective.reference_sources():
            trainer = variant.trainer
            seconds = seconds_of(lambda t=trainer: begin(t), device)  # type: ignore[misc]
            rows = [trainer.splits[source]["input_ids"] for source in variant.objective.reference_sources()]
            passes[name] = {"seconds": seconds, "tokens": sum(len(ids) for split in rows for ids in split)}
    return passes


def cost_against_retraining(
    lines: Mapping[str, Mapping[str, Any]],
    splits: Mapping[str, Dataset],
    train: TrainConfig,
    passes: Mapping[str, Mapping[str, float]],
) -> dict[str, Any]:
    """Estimate the seconds of a whole run of each method, and of retraining on the retain rows for as many epochs.

    An estimate is ``steps x median seconds of a step``. For methods with a pass of the reference, its seconds for all
    forget rows are added. An unlearning step reads ``batch_size`` forget rows and as many retain rows. A retraining
    step reads ``2 batch_size`` retain rows and is timed with `UnlearnTrainer`.
    """
    size, rows = train.per_device_train_batch_size, {name: len(split) for name, split in splits.items()}
    an_epoch = math.ceil(rows["forget"] / size)
    epochs = float(train.num_train_epochs)
    if train.max_steps > 0:
        epochs = train.max_steps * train.gradient_accumulation_steps / an_epoch
    steps = math.ceil(an_epoch * epochs)
    again = math.ceil(rows["retain"] / (2 * size) * epochs)
    retraining = {
        "steps": again,
        "seconds_of_a_step": lines[FINETUNE]["seconds"]["median"],
        "seconds": again * lines[FINETUNE]["seconds"]["median"],
    }
    unlearning = {}
    tokens = sum(map(len, splits["forget"]["input_ids"]))
    for name, line in lines.items():
        if line["objective"] is None or name.startswith("naive_"):
            continue
        # Scaled to all forget rows: no other benchmarked split has cached log-probs.
        before = passes[name]["seconds"] / passes[name]["tokens"] * tokens if name in passes else 0.0
        seconds = steps * line["seconds"]["median"] + before
        unlearning[name] = {
            "steps": steps,
            "seconds_of_a_step": line["seconds"]["median"],
            "seconds_of_the_reference_pass": before,
            "seconds": seconds,
            "of_retraining": seconds / retraining["seconds"],
        }
    return {
        "epochs": epochs,
        "rows": rows,
        "rows_of_a_split_in_a_step": size,
        "retraining": retraining,
        "unlearning": unlearning,
    }
