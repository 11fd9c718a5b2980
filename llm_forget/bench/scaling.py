"""Measure how time and memory of an npo step grow with its sizes, on random Llama models (nothing is downloaded)."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from trl import ModelConfig

from llm_forget.bench.compared_steps import make_variants, real_batches, set_up
from llm_forget.bench.interleaved_timing import interleave, line_fit, power_fit, spread
from llm_forget.bench.memory import peak_of
from llm_forget.core.config import TrainConfig
from llm_forget.models import demo_models
from llm_forget.objectives.methods import build_objective

logger = logging.getLogger("llm_forget")


@dataclass(frozen=True)
class Point:
    """The sizes of one measured step."""

    rows: int = 4  # of each split
    length: int = 64  # tokens of a row, half of them targets
    rank: int = 8
    vocabulary: int = 8192
    hidden: int = 256
    layers: int = 4


ON_CPU = Point()
ON_GPU = Point(rows=8, length=256, rank=16, vocabulary=32768, hidden=1024, layers=8)

# Factors of one size of the base point; the other sizes keep their values.
FACTORS: dict[str, Sequence[float]] = {
    "rows": (0.5, 1, 2, 3, 4),
    "length": (0.5, 1, 2, 3, 4),
    "rank": (0.5, 1, 2, 4, 8),
    "vocabulary": (0.5, 1, 2, 4, 8),
    "hidden": (0.5, 0.75, 1, 1.5, 2),
}


def growth(train: TrainConfig, folder: Path, *, base: Point | None = None, rounds: int = 3) -> dict[str, Any]:
    """Measure seconds and peak bytes of an npo step while one size at a time changes by the factors of `FACTORS`.

    Args:
        train: settings of precision, optimiser and gradient clipping. The batch size is not used.
        folder: output folder of the trainers.
        base: sizes of the base point. Default: `ON_GPU` or `ON_CPU`.
        rounds: number of measured rounds after one warm-up round. Every size makes one step per round.

    Returns:
        ``base``: its sizes. ``axes``: for each changed size, ``x``, ``seconds``, ``peak_bytes`` and fits
        ``y = a + b x``. For ``model_size``, x is the number of parameters, and the fits are ``y = c x^k``.
        ``vocabulary_doubled``: the peaks of two vocabularies and their relative change.
    """
    base = base or (ON_GPU if train.device.type == "cuda" else ON_CPU)
    axes = {}
    for name, factors in FACTORS.items():
        logger.info("growth with %s", "model size" if name == "hidden" else name)
        axes["model_size" if name == "hidden" else name] = _along(name, factors, base, train, folder, rounds)
    return {"base": dataclasses.asdict(base), "axes": axes, "vocabulary_doubled": _doubled(base, train, folder)}


def _along(
    name: str, factors: Sequence[float], base: Point, train: TrainConfig, folder: Path, rounds: int
) -> dict[str, Any]:
    points = [dataclasses.replace(base, **{name: int(getattr(base, name) * factor)}) for factor in factors]
    steps = [_steps(point, train, folder) for point in points]
    times = interleave({str(index): step for index, (step, _) in enumerate(steps)}, rounds, train.device)
    peaks = [peak_of(step, train.device) for step, _ in steps]
    seconds = [spread(times[str(index)]) for index in range(len(points))]
    x = [size if name == "hidden" else getattr(point, name) for point, (_, size) in zip(points, steps, strict=True)]
    fit = power_fit if name == "hidden" else line_fit
    return {
        "x": x,
        "seconds": seconds,
        "peak_bytes": peaks,
        "fit": "y = c x^k" if name == "hidden" else "y = a + b x",
        "fit_of_seconds": fit(x, [s["median"] for s in seconds]),
        "fit_of_peak_bytes": fit(x, peaks),
    }


def _doubled(base: Point, train: TrainConfig, folder: Path) -> dict[str, Any]:
    """Return the peak memory of a step at 4 and 8 times the base vocabulary, and the relative change between them. At
    these sizes, the logits need several blocks.
    """
    points = [
        dataclasses.replace(base, rows=2 * base.rows, length=2 * base.length, vocabulary=factor * base.vocabulary)
        for factor in (4, 8)
    ]
    peaks = []
    for point in points:
        step, _ = _steps(point, train, folder)
        peaks.append(peak_of(step, train.device))
    return {"vocabulary": [p.vocabulary for p in points], "peak_bytes": peaks, "change": peaks[1] / peaks[0] - 1}


def _steps(point: Point, train: TrainConfig, folder: Path) -> tuple[Any, int]:
    """Return a function that makes one npo step of these sizes, and the number of parameters of its model."""
    model = _random_llama(point, train)
    parameters = sum(p.numel() for p in model.parameters())
    splits = {name: _random_rows(point, seed) for seed, name in enumerate(("forget", "retain"))}
    tokenizer: Any = demo_models.demo_tokenizer()  # for its padding token only
    batches, used = real_batches(splits, point.rows, 1, seed=0, pad_token_id=tokenizer.pad_token_id)
    adapter = ModelConfig(lora_r=point.rank, lora_alpha=2 * point.rank, lora_dropout=0.0, use_peft=True)
    setup = set_up(model, adapter, train, tokenizer, used, folder, naive=False)
    step = make_variants(setup, {"npo": build_objective("npo")})["npo"].step
    return lambda *_: step(batches[0]), parameters


def _random_llama(point: Point, train: TrainConfig) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    heads = max(1, point.hidden // 64)
    config = LlamaConfig(
        vocab_size=point.vocabulary,
        hidden_size=point.hidden,
        intermediate_size=3 * point.hidden,
        num_hidden_layers=point.layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    return model.bfloat16() if train.bf16 else model


def _random_rows(point: Point, seed: int) -> Dataset:
    generator = torch.Generator().manual_seed(seed)
    rows: list[Mapping[str, Any]] = []
    for number in range(point.rows):
        ids = torch.randint(3, point.vocabulary, (point.length,), generator=generator).tolist()
        half = point.length // 2
        rows.append({"id": f"{seed}-{number}", "input_ids": ids, "labels": [-100] * half + ids[half:]})
    return Dataset.from_list(rows)
