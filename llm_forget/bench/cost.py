"""What unlearning costs beside training anew without the forget rows, from the times of single steps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from datasets import Dataset

from llm_forget.bench.rounds import seconds_of
from llm_forget.bench.steps import FINETUNE, Variant, begin
from llm_forget.core.config import TrainConfig


def reference_passes(variants: Mapping[str, Variant], device: torch.device) -> dict[str, dict[str, float]]:
    """Seconds of the pass that makes the reference log-probs before training, and the tokens it went over.

    Methods without one are left out. The pass is over the rows that the benchmark used.
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
    """Seconds of a whole run of each method, and of training an adapter on the retain rows for as many epochs.

    ``steps x median seconds of a step`` on both sides; the reference pass is taken in proportion to the tokens of all
    rows. A step of unlearning takes ``batch_size`` forget rows and as many retain rows, one of retraining takes twice
    ``batch_size`` rows, so that both steps are those that were timed. Retraining is by our own engine, which is the
    faster fine-tuning where rows differ in length.

    Args:
        lines: the variants as measured.
        splits: all rows of the recipe.
        train: epochs or steps, batch size.
        passes: from `reference_passes`.
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
    for name, line in lines.items():
        if line["objective"] is None or name.startswith("naive_"):
            continue
        before = _whole_pass(passes[name], splits["forget"]) if name in passes else 0.0
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


def _whole_pass(measured: Mapping[str, float], forget: Dataset) -> float:
    """Cached log-probs are of forget rows; alternates, which other methods read, are not benchmarked."""
    return measured["seconds"] / measured["tokens"] * sum(len(ids) for ids in forget["input_ids"])
