"""Measure the time and memory of training steps with the model, rows and adapter of a recipe, in one process."""

import logging
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from llm_forget.bench.compared_steps import (
    FINETUNE,
    NAIVE,
    TRANSFORMERS,
    Setup,
    Variant,
    make_variants,
    read_objectives,
    real_batches,
    set_up,
)
from llm_forget.bench.cost import cost_against_retraining, reference_passes
from llm_forget.bench.flops import ceiling_of, matrix_ceiling, token_counts, useful_flops
from llm_forget.bench.interleaved_timing import interleave, ratio, spread
from llm_forget.bench.memory import peak_of, weight_bytes
from llm_forget.bench.scaling import growth
from llm_forget.core import formats
from llm_forget.core.config import UnlearnConfig, parse
from llm_forget.core.environment import environment
from llm_forget.core.errors import ConfigError
from llm_forget.core.formats.bench import Bench
from llm_forget.models.adapters.lora import quantization_of
from llm_forget.models.load import load_base
from llm_forget.objectives.methods import build_objective
from llm_forget.training.job import prepare
from llm_forget.training.trainer import Batch

logger = logging.getLogger("llm_forget")
METHODS = ("npo", "grad_diff", "simnpo", "npo_kl", "undial", "rmu")


def bench(
    argv: Sequence[str],
    *,
    methods: Sequence[str] = METHODS,
    rounds: int = 5,
    output: str | None = None,
    scaling: bool = False,
    naive: bool = True,
) -> dict[str, Any]:
    """Measure the time and memory of training steps, and return the report as a dictionary.

    Model, rows and adapter are those of a recipe. Raise ConfigError for a key, row or method that is not allowed.

    Args:
        argv: ``RECIPE.yaml --key value``. ``output_dir`` is ignored.
        methods: methods to measure. The recipe's ``method_args`` apply only to its own method.
        rounds: number of measured rounds after one warm-up round. Every variant makes one step per round.
        output: JSON file to write. It contains no row ids, text, host name or paths.
        scaling: also measure, on random models, how cost grows with rows, length, rank, vocabulary and model size.
        naive: also measure naive variants, which need a second copy of the model.
    """
    with tempfile.TemporaryDirectory(prefix="llm_forget-bench-") as folder:
        data, train, model_args = parse([*argv, "--output_dir", folder], UnlearnConfig)
        assert isinstance(train, UnlearnConfig)
        if not model_args.use_peft:
            raise ConfigError("bench measures steps of an adapter with its base as reference; set use_peft to true")
        method_args = {train.method: train.method_args} if train.method and isinstance(train.method_args, dict) else {}
        objectives = read_objectives(list(methods), method_args)
        rows_of = build_objective(objective={"forget": {"name": "ga"}, "retain": {"name": "nll"}})
        tokenizer, splits, _ = prepare(data, model_args, rows_of)
        size, pad = train.per_device_train_batch_size, tokenizer.pad_token_id
        batches, used = real_batches(splits, size, rounds + 1, seed=train.seed, pad_token_id=pad)
        base = load_base(model_args)
        with_naive = naive and bool(NAIVE.keys() & objectives.keys())
        setup = set_up(base, model_args, train, tokenizer, used, Path(folder), naive=with_naive)
        variants = make_variants(setup, objectives)
        report = {
            "format": Bench.FORMAT,
            "date": datetime.now(UTC).date().isoformat(),
            "machine": {**environment(), "cpus": os.cpu_count()},
            "model": _model_facts(setup, model_args),
            "data": {name: {"rows": len(split)} for name, split in splits.items()},
            **compare(setup, variants, batches, rounds),
        }
        passes = reference_passes(variants, setup.device)
        report["cost"] = cost_against_retraining(report["variants"], splits, train, passes)
        if scaling:
            report["scaling"] = growth(train, Path(folder))
    if output is not None:
        formats.write(Path(output), report, Bench)
    return report


def compare(setup: Setup, variants: Mapping[str, Variant], batches: list[Batch], rounds: int) -> dict[str, Any]:
    """Measure all variants on the same batches, one batch per round. Return times, memory, FLOP/s and ratios."""
    counts = [token_counts(batch) for batch in batches]
    losses: dict[str, list[Any]] = {name: [] for name in variants}
    products: list[list[dict[str, Any]]] = []
    width = sum(split["tokens"] for split in counts[0].values())

    def run(name: str, number: int) -> None:
        losses[name].append(variants[name].step(batches[number]))

    def ceiling(_: int) -> None:
        products.append(matrix_ceiling(width, setup.sizes.hidden, compute_dtype(setup), setup.device))

    steps: dict[str, Any] = {name: lambda number, name=name: run(name, number) for name in variants}
    logger.info("%d rounds of %d variants, and one to warm up", rounds, len(variants))
    times = interleave({**steps, "ceiling": ceiling}, rounds, setup.device)
    top = ceiling_of(products[1:])
    largest = max(range(len(batches)), key=lambda i: max(p["labels"].numel() for p in batches[i].values()))
    lines = {}
    for name, variant in variants.items():
        logger.info("memory of %s", name)
        peak = peak_of(lambda step=variant.step: step(batches[largest]), setup.device)  # type: ignore[misc]
        flops = [useful_flops(setup.sizes, count, variant.objective) for count in counts[1:]]
        lines[name] = _line(variant, times[name], flops, counts[1:], top["flop_per_second"]["median"]) | {
            "losses": [float(loss) for loss in losses[name][1:]],
            "peak_bytes": peak + variant.extra_bytes,
            "of_which_second_model": variant.extra_bytes,
        }
    shortcuts = vars(setup.engine.shortcuts)
    return {
        "rounds": rounds,
        "shortcuts": shortcuts,
        "batches": counts[1:],
        "batch_of_the_peak": counts[largest],
        "ceiling": {**top, "dtype": str(compute_dtype(setup)).removeprefix("torch.")},
        "variants": lines,
        "ratios": ratios(lines),
    }


def _line(
    variant: Variant, seconds: list[float], flops: list[float], counts: list[dict[str, Any]], top: float
) -> dict[str, Any]:
    tokens = [sum(split["tokens"] for split in count.values()) for count in counts]
    rates = [work / time for work, time in zip(flops, seconds, strict=True)]
    return {
        "objective": variant.objective.to_dict() if variant.objective is not None else None,
        "seconds": spread(seconds),
        "tokens_per_second": spread([n / time for n, time in zip(tokens, seconds, strict=True)]),
        "useful_flops": flops,
        "flop_per_second": spread(rates),
        "of_ceiling": spread([rate / top for rate in rates]),
    }


def ratios(lines: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return ratios of time and memory between variants.

    ``time_to_NAME`` divides each variant's time by that of a fine-tuning variant. ``naive_to_ours`` divides time and
    memory of a naive variant by ours. Times are compared within a round, where batch and machine load are the same.
    """
    times = {name: line["seconds"]["values"] for name, line in lines.items()}
    comparisons: dict[str, Any] = {
        f"time_to_{base}": {name: ratio(times, name, base) for name in times} for base in (TRANSFORMERS, FINETUNE)
    }
    comparisons["naive_to_ours"] = {
        name: {
            "time": ratio(times, f"naive_{name}", name),
            "memory": lines[f"naive_{name}"]["peak_bytes"] / max(1, lines[name]["peak_bytes"]),
            "largest_difference_of_losses": max(
                abs(a - b) for a, b in zip(lines[name]["losses"], lines[f"naive_{name}"]["losses"], strict=True)
            ),
        }
        for name in times
        if f"naive_{name}" in times
    }
    return comparisons


def compute_dtype(setup: Setup) -> torch.dtype:
    """Return the dtype of matrix products: bfloat16 or float16 if the recipe sets one, else that of the weights."""
    if setup.args.bf16 or setup.args.fp16:
        return torch.bfloat16 if setup.args.bf16 else torch.float16
    return setup.model.get_base_model().dtype


def _model_facts(setup: Setup, model_args: Any) -> dict[str, Any]:
    bare = setup.model.get_base_model()
    name = model_args.model_name_or_path
    return {
        "name": "local" if Path(name).exists() else name,  # no local path
        "architecture": type(bare).__name__,
        **asdict(setup.sizes),
        "weight_bytes": weight_bytes(setup.model),
        "dtype": str(bare.dtype).removeprefix("torch."),
        "quantization": quantization_of(setup.model),
        "lora_r": model_args.lora_r,
        "gradient_checkpointing": bool(setup.args.gradient_checkpointing),
        "batch_size": setup.args.per_device_train_batch_size,
    }
