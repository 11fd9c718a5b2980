"""Keep the weights of the step whose levels on forget rows are nearest to the target's levels on holdout rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import TrainerCallback

from llm_forget.logprobs.batches import collate
from llm_forget.logprobs.logprobs import Logprobs, evaluation_mode
from llm_forget.training.calibration import STOPPING, Level, levels_with_intervals, measure, sample

if TYPE_CHECKING:
    from llm_forget.training.trainer import UnlearnTrainer

MEASUREMENTS = 10  # approximate number in a run; a run with fewer steps is measured after each step
RETAIN_ROWS = 64  # number of retain rows for the retain drift
DRIFT_STEP = 0.01  # nats per token; smaller differences in drift are noise
WEIGHTS = "kept_weights.safetensors"


class TwoSidedStop(TrainerCallback):
    """A callback that measures the levels of the forget rows about `MEASUREMENTS` times, and restores the best weights.

    The best step has levels inside the intervals of the holdout rows or, if no step has, the least distance to them. Of
    several such steps, it has the least retain drift (log-prob that retain rows lost since the start, nats per token),
    then the levels nearest to the means of the holdout rows.

    Args:
        rows: tokenised forget rows, without rows that a teacher added.
        holdout: tokenised holdout rows, on which the model is measured before the first step.
        subjects: subject of each holdout row. Intervals are bootstrapped over subjects.
        retain: tokenised retain rows, if there are any.
    """

    def __init__(self, rows: Dataset, holdout: Dataset, subjects: Sequence[Any], retain: Dataset | None = None) -> None:
        self._rows, self._holdout, self._subjects = sample(rows), holdout, subjects
        self._retain = None if retain is None else sample(retain, RETAIN_ROWS)
        self._retain_before = math.nan
        self.trainer: UnlearnTrainer  # set by the trainer before training
        self.levels: dict[str, Level] = {}  # levels of the model on the holdout rows before the first step
        self.best: tuple[float, ...] = ()  # distance to the intervals, retain drift, distance to the holdout's means
        self.best_step = 0
        self.best_levels: dict[str, float] = {}
        self._weights: dict[str, Tensor] = {}

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Measure the model before its first step. A resumed run reads these numbers from its checkpoint instead."""
        if not self.levels:
            self.levels = levels_with_intervals(self._forward, self._holdout, self._subjects)
            if self._retain is not None:
                self._retain_before = self._retain_logprob()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Measure the forget rows, log their levels, and keep the weights if they are the best so far."""
        every = max(1, state.max_steps // MEASUREMENTS)
        if state.global_step % every and state.global_step < state.max_steps:
            return
        values = {name: float(levels.mean()) for name, levels in measure(self._forward, self._rows).items()}
        drift = 0.0 if self._retain is None else self._retain_before - self._retain_logprob()
        line_is_due = control.should_log
        self.trainer.log({f"levels/{name}": value for name, value in values.items()} | {"levels/retain_drift": drift})
        control.should_log = line_is_due  # `log` resets the flag, so that a due line would be omitted
        outside = sum(self.levels[name].distance(values[name]) for name in STOPPING)
        off_centre = sum(self.levels[name].off_centre(values[name]) for name in STOPPING)
        rank = (round(outside, 3), max(0, round(drift / DRIFT_STEP)), off_centre)
        if not self.best or rank < self.best:
            self.best, self.best_step, self.best_levels = rank, state.global_step, values
            self._weights = {name: weight.detach().to("cpu", copy=True) for name, weight in self._trainable().items()}

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Copy the best weights into the model."""
        with torch.no_grad():
            for name, parameter in self._trainable().items():
                if name in self._weights:
                    parameter.copy_(self._weights[name])

    def summary(self) -> dict[str, Any]:
        """Return the value of the key ``calibration`` in provenance.json."""
        levels = {name: asdict(level) for name, level in self.levels.items()}
        inside = bool(self.best) and self.best[0] == 0
        return {"holdout": levels, "forget": self.best_levels, "kept_step": self.best_step, "inside": inside}

    def statement(self) -> str:
        """Return a log line: which step is kept, and whether its levels are inside the intervals."""
        if not self.best:
            return "training stopped before the forget rows were measured; the weights of its last step are kept"
        pairs = (
            f"{name} {self.best_levels[name]:.3f} ({level.low:.3f} to {level.high:.3f} on holdout rows)"
            for name, level in self.levels.items()
            if name in STOPPING
        )
        place = "inside" if self.summary()["inside"] else "outside"
        return f"kept the weights of step {self.best_step}, {place} the levels of unseen rows: {', '.join(pairs)}"

    def save(self, folder: Path) -> None:
        """Write the kept weights into a checkpoint."""
        if self._weights:
            save_file(self._weights, folder / WEIGHTS)

    def state(self) -> dict[str, Any]:
        """Return the numbers for a checkpoint: levels of holdout rows, and number, rank and levels of the best step."""
        return {
            "levels": {name: asdict(level) for name, level in self.levels.items()},
            "retain_before": None if math.isnan(self._retain_before) else self._retain_before,
            "best": list(self.best), "best_step": self.best_step, "best_levels": self.best_levels,
        }  # fmt: skip

    def load(self, folder: Path, state: Mapping[str, Any]) -> None:
        """Restore from a checkpoint folder that `save` wrote to, and from the numbers that `state` returned."""
        self.levels = {name: Level(**level) for name, level in state["levels"].items()}
        self._retain_before = math.nan if state["retain_before"] is None else state["retain_before"]
        self.best, self.best_step = tuple(state["best"]), state["best_step"]
        self.best_levels = dict(state["best_levels"])
        self._weights = load_file(folder / WEIGHTS) if self.best else {}

    def _trainable(self) -> dict[str, Tensor]:
        model = self.trainer.accelerator.unwrap_model(self.trainer.model)
        return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}

    def _retain_logprob(self) -> float:
        assert self._retain is not None
        return float(measure(self._forward, self._retain)["logprob"].mean())

    def _forward(self, rows: list[dict[str, Any]]) -> Logprobs:
        trainer = self.trainer
        batch = trainer._prepare_inputs({"rows": collate(rows, trainer.pad_id)})
        with torch.no_grad(), trainer.compute_loss_context_manager(), evaluation_mode(trainer.model):
            return trainer.forward(trainer.model_wrapped, batch, logits=["rows"])["rows"]
