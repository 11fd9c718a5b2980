"""Compute reference log-probabilities once per row before training, cache them on disk, and read them in each step.

The reference is the policy with the trained adapter switched off, so there is no second model. The name of the cache
file is a digest of model, precision and tokens. The file contains no text.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from datasets import Dataset
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import TrainerCallback

from llm_forget.core.digests import json_digest
from llm_forget.core.errors import ConfigError
from llm_forget.core.files import cache_folder
from llm_forget.data.digest import row_lengths, tokens_digest
from llm_forget.logprobs.batches import collate
from llm_forget.logprobs.logprobs import Logprobs
from llm_forget.models.adapters.lora import quantization_of, reference_mode
from llm_forget.training.step_statistics import StepStatistics

if TYPE_CHECKING:
    from llm_forget.training.trainer import Batch, UnlearnTrainer

Forward = Callable[[list[dict[str, Any]]], Logprobs]


class ReferenceLogprobs:
    """Log-probabilities (nats) of the target tokens of one split under the reference.

    ``indices`` ``[N]`` are row numbers in ascending order. Row ``indices[i]`` has the log-probs
    ``values[offsets[i]:offsets[i + 1]]``.
    """

    def __init__(self, indices: np.ndarray, offsets: np.ndarray, values: np.ndarray) -> None:
        self._indices, self._offsets, self._values = indices, offsets, values

    def lookup(self, rows: Tensor, policy: Logprobs) -> Logprobs:
        """Return the log-probs of ``rows`` ``[B]`` (-1 for padding), aligned with ``policy`` ``[B, T]``."""
        values = torch.zeros(policy.values.shape, dtype=torch.float32)
        positions = np.searchsorted(self._indices, rows.numpy(force=True))
        for batch_row, (row, position) in enumerate(zip(rows.tolist(), positions, strict=True)):
            if row >= 0:
                if position == len(self._indices) or self._indices[position] != row:
                    raise KeyError(row)
                start, stop = self._offsets[position : position + 2]
                values[batch_row, : stop - start] = torch.from_numpy(self._values[start:stop])
        return Logprobs(values=values.to(policy.values.device), mask=policy.mask, labels=policy.labels)

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        save_file({"indices": self._indices, "offsets": self._offsets, "values": self._values}, temporary)
        os.replace(temporary, path)

    @classmethod
    def load(cls, path: Path) -> ReferenceLogprobs:
        try:
            return cls(**load_file(path))
        except SafetensorError as error:
            raise ConfigError(f"the cached reference log-probs '{path}' are damaged; delete the file") from error


class Reference(TrainerCallback):
    """The reference of a trainer: cached log-probs, and a pass in each step if terms need logits or hidden states."""

    def __init__(self, trainer: UnlearnTrainer) -> None:
        self.trainer = trainer
        self.logprobs: dict[str, ReferenceLogprobs] = {}

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Compute or load the log-probs that terms need. The model is already wrapped, and no step was made yet."""
        trainer = self.trainer
        trainer.find_shortcuts()
        rows = {source: self._rows_of(source) for source in trainer.objective.reference_sources()}
        watched, state = trainer.max_retain_drop is not None, trainer.state
        if watched and trainer.args.logging_strategy == "steps" and state.logging_steps > state.max_steps:
            raise ConfigError(
                f"max_retain_drop is checked every {state.logging_steps} steps (logging_steps), but this run has "
                f"{state.max_steps}; lower logging_steps"
            )
        if watched and "retain" not in rows:
            rows["retain"] = self._rows_of("retain")
        self.logprobs = {split: self._load_or_compute(split, split_rows) for split, split_rows in rows.items()}
        if trainer.resumed_from is None:
            trainer._statistics = StepStatistics()  # do not count the time of the reference pass

    def _rows_of(self, split: str) -> np.ndarray:
        """Return the row numbers of a split that training uses: all of the primary split, else those of its stream."""
        trainer = self.trainer
        if split in (next(iter(trainer.splits)), "alternate"):
            return np.arange(len(trainer.splits[split]))
        epochs = range(int(np.ceil(trainer.state.num_train_epochs)))
        stream_rows = np.unique(np.concatenate([trainer.sampler.slots(epoch)[split] for epoch in epochs]))
        return stream_rows[stream_rows >= 0]

    def of(self, model: nn.Module, batch: Batch, policy: dict[str, Logprobs]) -> dict[str, Logprobs]:
        """Return the log-probs, logits or hidden states of the reference that the terms need on this batch."""
        trainer = self.trainer
        logprobs = {s: cached.lookup(batch[s]["index"], policy[s]) for s, cached in self.logprobs.items()}
        sources = trainer.objective.reference_pass_sources()
        if sources:
            layer = trainer.layer if trainer.objective.reference_needs("hidden_states") else None
            logits = [split for split in sources if trainer.objective.reference_needs("logits", split)]
            with torch.no_grad(), reference_mode(trainer.accelerator.unwrap_model(model)):
                logprobs |= trainer.forward(model, {s: batch[s] for s in sources}, logits=logits, layer=layer)
        return logprobs

    def _load_or_compute(self, split: str, rows: np.ndarray) -> ReferenceLogprobs:
        trainer, args = self.trainer, self.trainer.args
        file = None
        if trainer.model_digest is not None:
            precision = [str(trainer.model.dtype), quantization_of(trainer.model), args.bf16, args.fp16]
            file = cache_file(json_digest([trainer.model_digest, *precision]), trainer.splits[split], rows)
        # If one process loaded while another computed, their collective calls would deadlock.
        if file is not None and all(gather_object([file.is_file()])):
            return ReferenceLogprobs.load(file)
        if trainer.state.global_step > 0 and not isinstance(trainer.model, PeftModel):
            raise ConfigError("this run's reference log-probs are no longer cached; start again with --overwrite true")
        logprobs = compute(
            trainer.splits[split], rows, self._forward,
            batch_size=args.per_device_eval_batch_size, accelerator=trainer.accelerator, name=split,
        )  # fmt: skip
        if file is not None and trainer.accelerator.is_main_process:
            logprobs.save(file)
        return logprobs

    def _forward(self, rows: list[dict[str, Any]]) -> Logprobs:
        trainer = self.trainer
        bare = trainer.accelerator.unwrap_model(trainer.model)  # without the wrapper of torch.compile
        batch: Batch = trainer._prepare_inputs({"rows": collate(rows, trainer.pad_id)})
        was_training = bare.training
        bare.eval()
        try:
            off = reference_mode(bare) if isinstance(bare, PeftModel) else nullcontext()
            with torch.no_grad(), trainer.compute_loss_context_manager(), off:
                return trainer.forward(trainer.model_wrapped, batch)["rows"]
        finally:
            bare.train(was_training)


def cache_file(model_digest: str, dataset: Dataset, rows: np.ndarray) -> Path:
    """Return the path of the cache file for the tokens of these rows and this reference model."""
    tokens = tokens_digest(dataset, rows)
    numbers = "sha256:" + hashlib.sha256(rows.astype(np.int64).tobytes()).hexdigest()
    key = json_digest({"model": model_digest, "rows": numbers, "tokens": tokens, "version": 2})
    return cache_folder() / "reference" / f"{key.removeprefix('sha256:')[:32]}.safetensors"


def compute(
    dataset: Dataset, rows: np.ndarray, forward: Forward, *, batch_size: int, accelerator: Accelerator, name: str
) -> ReferenceLogprobs:
    """Run the reference once on ``rows`` (ascending). Processes share the work, and all return the whole result."""
    by_length = rows[np.argsort(row_lengths(dataset)[rows], kind="stable")[::-1]]
    indices: list[np.ndarray] = [rows[:0]]  # in the order of this process's batches
    row_values: list[np.ndarray] = []
    batches = _rank_batches(by_length, batch_size, accelerator.num_processes, accelerator.process_index)
    quiet = not accelerator.is_main_process
    for batch in tqdm(list(batches), desc=f"reference log-probs ({name})", disable=quiet, leave=False):
        # All processes make equally many forward passes, since each pass of a sharded model gathers its weights.
        logprobs = forward([dataset[int(row)] for row in batch] if len(batch) else [dataset[int(rows[0])]])
        indices.append(batch)
        for _, values, mask in zip(batch, logprobs.values.cpu(), logprobs.mask.cpu(), strict=False):
            row_values.append(values[mask].float().numpy())
    lengths = np.array([len(values) for values in row_values], dtype=np.int64)
    flat = np.concatenate([np.zeros(0, dtype=np.float32), *row_values])
    # Three arrays per process: gathering a million small ones is slow.
    arrays = [
        np.concatenate(parts) for parts in zip(*gather_object([(np.concatenate(indices), lengths, flat)]), strict=True)
    ]
    return _sorted_by_row(*arrays)


def _sorted_by_row(indices: np.ndarray, lengths: np.ndarray, values: np.ndarray) -> ReferenceLogprobs:
    """Return the log-probs with rows, and their concatenated values, sorted into the order of the data set."""
    starts = np.cumsum(lengths) - lengths
    order = np.argsort(indices, kind="stable")
    offsets = np.concatenate([[0], np.cumsum(lengths[order])]).astype(np.int64)
    # Source position of each value: the start of its row, plus its position in the row.
    within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths[order])
    sorted_values = values[np.repeat(starts[order], lengths[order]) + within]
    return ReferenceLogprobs(indices[order].astype(np.int64), offsets, sorted_values.astype(np.float32))


def _rank_batches(rows: np.ndarray, batch_size: int, processes: int, rank: int) -> Iterator[np.ndarray]:
    batches = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    for start in range(0, len(batches), processes):
        number = start + rank
        yield batches[number] if number < len(batches) else rows[:0]
