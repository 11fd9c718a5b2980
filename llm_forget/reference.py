"""Reference log-probabilities: computed once per row before training, kept on disk, looked up in every step.

The reference is the policy's own weights with the trained adapter off: no second model exists. The cache file is named
by the digest of everything the numbers depend on (model, adapter beneath, tokens of the rows), and holds no text.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from datasets import Dataset
from safetensors.numpy import load_file, save_file
from torch import Tensor
from tqdm.auto import tqdm

from llm_forget.logprobs import Logprobs
from llm_forget.run import json_digest

Forward = Callable[[list[dict[str, Any]]], Logprobs]


def cache_folder() -> Path:
    """Where numbers that depend only on content are shared between runs: $LLM_FORGET_CACHE or ~/.cache/llm_forget."""
    return Path(os.environ.get("LLM_FORGET_CACHE") or Path.home() / ".cache" / "llm_forget")


class ReferenceLogprobs:
    """Log-probabilities of the gold tokens of one split's rows under the reference."""

    def __init__(self, indices: np.ndarray, offsets: np.ndarray, values: np.ndarray) -> None:
        self._place = {int(row): place for place, row in enumerate(indices)}
        self._indices, self._offsets, self._values = indices, offsets, values

    def lookup(self, rows: Tensor, policy: Logprobs) -> Logprobs:
        """Values for dataset ``rows`` ``[B]`` (-1 for a padding row), aligned to ``policy`` ``[B, T]``."""
        values = torch.zeros(policy.values.shape, dtype=torch.float32)
        for place, row in enumerate(rows.tolist()):
            if row >= 0:
                start, stop = self._offsets[self._place[row] :][:2]
                values[place, : stop - start] = torch.from_numpy(self._values[start:stop])
        return Logprobs(values=values.to(policy.values.device), mask=policy.mask, labels=policy.labels)

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        save_file({"indices": self._indices, "offsets": self._offsets, "values": self._values}, temporary)
        os.replace(temporary, path)

    @classmethod
    def load(cls, path: Path) -> ReferenceLogprobs:
        return cls(**load_file(path))


def cache_file(model_digest: str, dataset: Dataset, rows: np.ndarray) -> Path:
    """Name of the cache file for these tokens under this reference model."""
    chosen = dataset.select(rows)
    tokens = [json_digest([row["input_ids"], row["labels"]]) for row in chosen]
    key = json_digest({"model": model_digest, "rows": rows.tolist(), "tokens": tokens, "version": 1})
    return cache_folder() / "reference" / f"{key.removeprefix('sha256:')[:32]}.safetensors"


def compute(
    dataset: Dataset, rows: np.ndarray, forward: Forward, *, batch_size: int, accelerator: Accelerator, name: str
) -> ReferenceLogprobs:
    """Run the reference over ``rows``, each once, shared out over the processes and gathered on all of them."""
    lengths = [len(ids) for ids in dataset.select(rows)["input_ids"]]
    by_length = rows[np.argsort(lengths, kind="stable")[::-1]]
    mine: list[tuple[int, np.ndarray]] = []
    batches = _shares(by_length, batch_size, accelerator.num_processes, accelerator.process_index)
    quiet = not accelerator.is_main_process
    for batch in tqdm(list(batches), desc=f"reference log-probs ({name})", disable=quiet, leave=False):
        # Every process makes the same number of forward passes, since a sharded model gathers its weights in each.
        logprobs = forward([dataset[int(row)] for row in batch] if len(batch) else [dataset[int(rows[0])]])
        for row, values, mask in zip(batch, logprobs.values.cpu(), logprobs.mask.cpu(), strict=False):
            mine.append((int(row), values[mask].float().numpy()))
    found = dict(gather_object(mine))
    ordered = [found[int(row)] for row in rows]
    offsets = np.concatenate([[0], np.cumsum([len(v) for v in ordered])]).astype(np.int64)
    return ReferenceLogprobs(rows.astype(np.int64), offsets, np.concatenate(ordered).astype(np.float32))


def _shares(rows: np.ndarray, batch_size: int, processes: int, rank: int) -> Iterator[np.ndarray]:
    batches = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    for start in range(0, len(batches), processes):
        place = start + rank
        yield batches[place] if place < len(batches) else rows[:0]
