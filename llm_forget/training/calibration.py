"""Calibration: estimate the levels of a model that never saw the forget rows from the target's levels on holdout rows.

This is an estimate, not a proof. It is valid only if holdout rows are as hard for the target (the model before
unlearning) as the forget rows would be for a model that never saw them (arXiv:2607.19442).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from llm_forget.core.errors import ConfigError
from llm_forget.data.subjects import subject_numbers
from llm_forget.logprobs.batches import collate
from llm_forget.logprobs.levels import Levels, levels_of
from llm_forget.logprobs.logprobs import Logprobs, evaluation_mode, forward_logprobs
from llm_forget.objectives._masked import at_targets
from llm_forget.objectives._vocabulary import gold_margin

Forward = Callable[[list[dict[str, Any]]], Logprobs]  # tokenised rows -> log-probs with logits
NAMES = tuple(f.name for f in fields(Levels))
STOPPING = ("strength", "memorization", "logprob")  # the levels that decide which step is kept
RESAMPLES = 1000
BATCH = 16  # rows of a forward pass
ROWS = 256  # maximum number of rows of a split that are measured


@dataclass(frozen=True)
class Level:
    """The mean of one level over rows, with the 95 % interval of a bootstrap over subjects."""

    value: float
    low: float
    high: float

    def distance(self, value: float) -> float:
        """Return how far a value is outside the interval, in half-widths of the interval; 0 inside."""
        return max(self.low - value, value - self.high, 0.0) / self._half_width

    def off_centre(self, value: float) -> float:
        """Return how far a value is from the mean, in half-widths of the interval."""
        return abs(value - self.value) / self._half_width

    @property
    def _half_width(self) -> float:
        return max((self.high - self.low) / 2, 1e-6)


def sample(rows: Dataset, limit: int = ROWS) -> Dataset:
    """Return at most ``limit`` evenly spaced rows. Each window of a long row counts as a row."""
    return rows.select(range(0, len(rows), -(-len(rows) // limit) or 1))


def measure(forward: Forward, rows: Dataset) -> dict[str, np.ndarray]:
    """Return the levels of tokenised rows: for each name in `NAMES`, the values of all rows, ``[N]``."""
    parts = [levels_of(forward(batch)) for batch in batches(rows)]
    return {name: np.concatenate([getattr(part, name).float().cpu().numpy() for part in parts]) for name in NAMES}


def batches(rows: Dataset, size: int = BATCH) -> Iterator[list[dict[str, Any]]]:
    """Yield the rows in lists of length ``size``. The last list may be shorter."""
    for start in range(0, len(rows), size):
        yield [rows[place] for place in range(start, min(start + size, len(rows)))]


def share_of_unknown(forward: Forward, rows: Dataset) -> float:
    """Return the mean share of unknown gold tokens in the probability of themselves and their ten best rivals.

    Unknown tokens are those that the model does not rank first. Their log-odds (`gold_margin`) are averaged, and the
    mean is converted to a share in (0, 1). Raise ConfigError if the model ranks every gold token first.
    """
    margins: list[Tensor] = []
    for batch in batches(rows):
        logprobs = forward(batch)
        logits, labels = at_targets(logprobs, "logits"), logprobs.labels[logprobs.mask]
        unknown = gold_margin(logits, labels, rivals=1) <= 0  # [N]
        margins.append(gold_margin(logits, labels)[unknown].cpu())
    unknown_margins = torch.cat(margins)
    if not len(unknown_margins):
        raise ConfigError(
            "the model knows every token of the holdout rows, so they give no level; are they rows that were never "
            "trained on? If so, set rho"
        )
    return float(unknown_margins.double().mean().sigmoid())


def forward_of(model: Any, pad_id: int) -> Forward:
    """Return a function that maps tokenised rows to log-probs with logits, without gradient and dropout."""

    def forward(rows: list[dict[str, Any]]) -> Logprobs:
        batch = {name: tensor.to(model.device) for name, tensor in collate(rows, pad_id).items()}
        with torch.no_grad(), evaluation_mode(model):
            return forward_logprobs(model, batch, head=model.get_output_embeddings(), logits=True)

    return forward


def with_interval(values: np.ndarray, subjects: Sequence[Any], *, seed: int = 0) -> Level:
    """Return the mean of ``values`` ``[N]`` with its 95 % interval from a bootstrap over subjects.

    If all rows have the same subject, rows are resampled instead, and the interval is narrower than one over subjects
    would be. Raise ConfigError for a single row, which has no interval.
    """
    if len(values) == 1:
        raise ConfigError("one holdout row gives no interval; add rows to holdout, of several subjects")
    groups = subject_numbers(values, [str(subject) for subject in subjects])
    sums, counts = np.bincount(groups, values), np.bincount(groups)
    draws = np.random.default_rng(seed).integers(len(counts), size=(RESAMPLES, len(counts)))
    means = sums[draws].sum(-1) / counts[draws].sum(-1)
    low, high = np.percentile(means, [2.5, 97.5])
    return Level(float(values.mean()), float(low), float(high))


def levels_with_intervals(forward: Forward, rows: Dataset, subjects: Sequence[Any]) -> dict[str, Level]:
    """Return all levels of a model on tokenised rows by name. ``subjects`` has the subject of each row."""
    return {name: with_interval(values, subjects) for name, values in measure(forward, rows).items()}


def bisected(strength_at: Callable[[float], float], level: float, low: float, high: float, steps: int) -> float:
    """Return the argument between ``low`` and ``high`` at which a decreasing function has the value ``level``."""
    for _ in range(steps):
        middle = (low + high) / 2
        low, high = (middle, high) if strength_at(middle) > level else (low, middle)
    return (low + high) / 2
