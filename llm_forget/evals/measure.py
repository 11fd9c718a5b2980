"""Measuring models with the probes of a suite, with one model in memory and nothing measured twice.

The target is the unlearned model with its adapter off, so a run and its target are loaded once; an oracle is loaded
before and freed. Records of the unlearned model stay with its run; those of target and oracle are found again by
content, for all runs on the same target, and copied into each run.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from llm_forget.evals.probes import probe_generate, probe_logprobs
from llm_forget.evals.records import RecordWriter, content_key, load_records, write_records
from llm_forget.evals.rows import Work
from llm_forget.models import find_source, load_adapter, load_base, reference_mode, source_digest
from llm_forget.models.digest import folder_digest
from llm_forget.reference import cache_folder
from llm_forget.run import file_digest

if TYPE_CHECKING:
    from trl import ModelConfig

PRECISION = ("dtype", "load_in_4bit", "load_in_8bit", "bnb_4bit_quant_type", "use_bnb_nested_quant")


@dataclass(frozen=True)
class Subject:
    """A model to be measured: what to load, and whether the unlearning adapter on it is on."""

    role: str  # before | unlearned | oracle
    model: ModelConfig
    adapter: Path | None = None
    adapter_on: bool = True

    @cached_property
    def digest(self) -> str:
        """Of weights, adapters and precision: equal for one target evaluated from many runs."""
        adapter = folder_digest(self.adapter) if self.adapter is not None and self.adapter_on else None
        precision = {key: str(getattr(self.model, key)) for key in PRECISION}
        base = source_digest(self.model.model_name_or_path, self.model.model_revision)
        return content_key(base=base, adapter=adapter, precision=precision)

    def key(self, work: Work) -> str:
        """What records of a probe are kept under. Where a generation ends may stand in a file beside the weights."""
        ends = self._generation_config if work.kind == "generate" else None
        return content_key(model=self.digest, work=work.digest, ends=ends)

    @cached_property
    def _generation_config(self) -> str | None:
        # The digests of other kinds of source (a commit, a GGUF file) cover it.
        source = find_source(self.model.model_name_or_path)
        file = Path(source.location) / "generation_config.json"
        return file_digest(file) if source.kind == "folder" and file.is_file() else None

    @property
    def name(self) -> str:
        """What the model is called, without the path of a machine."""
        if self.adapter is not None and self.adapter_on:
            return self.adapter.resolve().parent.name
        name = str(self.model.model_name_or_path)
        return Path(name).resolve().name if Path(name).exists() else name


def measure(
    subjects: dict[str, Subject],
    works: dict[str, Work],
    tokenizer: Any,
    *,
    device: torch.device,
    folder: Path | None = None,
    batch_size: int = 64,
    quiet: bool = False,
) -> dict[str, dict[str, Any]]:
    """Records of every role and probe: from disk where they are, otherwise from one pass.

    Args:
        subjects: the models by role, measured in this order.
        works: the probes by name.
        tokenizer: of all models.
        device: where models go that are not quantised.
        folder: gets ``<role>/<probe>.jsonl``; without one only the cache is written.
        batch_size: sequences at most.
        quiet: no progress.
    """
    columns = (TextColumn("{task.description:32}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    records: dict[str, dict[str, Any]] = {role: {} for role in subjects}
    with Progress(*columns, disable=quiet, transient=True) as progress, _one_model(device) as holder:
        for role, subject in subjects.items():
            for name, work in works.items():
                key = subject.key(work)
                own = folder / role / f"{name}.jsonl" if folder is not None else None
                path = own if own is not None and role == "unlearned" else _shared_file(subject, work, key, own)
                found = load_records(path, key)
                if found is None:
                    writer = RecordWriter(path, work.kind, key, work.keys)
                    found = _run_probe(holder, subject, tokenizer, work, writer, batch_size, progress)
                if own is not None and path != own and load_records(own, key) is None:
                    write_records(own, work.kind, key, found)
                records[role][name] = _with_references(found, work)
    return records


def _shared_file(subject: Subject, work: Work, key: str, own: Path | None) -> Path:
    """Where records of a target or oracle are found again by the next run that is compared with it.

    What a model said may be what is to be forgotten. It is kept with the run that holds the model, or else with the run
    that asked, so that it goes when they go; only numbers are put into the cache of all runs.
    """
    if work.kind == "generate":
        home = Path(str(subject.model.model_name_or_path))
        if (home / "run.json").is_file():
            return home / "records" / "shared" / f"{key}.jsonl"
        if own is not None:
            return own
    return cache_folder() / "records" / f"{key}.jsonl"


def _run_probe(
    holder: _OneModel,
    subject: Subject,
    tokenizer: Any,
    work: Work,
    writer: RecordWriter,
    batch_size: int,
    progress: Progress,
) -> list[Any]:
    # The model is a local of this function only: a name that outlives it would keep two models in memory.
    done = len(work.keys) - len(writer.missing())
    task = progress.add_task(f"{subject.role}: {work.probe.name}", total=len(work.keys), completed=done)

    def advance(count: int) -> None:
        progress.advance(task, count)

    with holder.holding(subject) as model:
        if work.kind == "logprobs":
            probe_logprobs(model, work.token_rows, writer, batch_size=batch_size, advance=advance)
        else:
            new = work.probe.max_new_tokens
            probe_generate(
                model, tokenizer, work.prompt_rows, writer, max_new_tokens=new, batch_size=batch_size, advance=advance
            )
    progress.remove_task(task)
    return writer.finish()


def _with_references(records: list[Any], work: Work) -> list[Any]:
    """Put the true answers beside the generated ones; they are in no file."""
    references = {row.key: row.reference for row in work.prompt_rows}
    return [replace(r, reference=references[r.key]) if r.key in references else r for r in records]


@contextmanager
def _one_model(device: torch.device) -> Iterator[_OneModel]:
    holder = _OneModel(device)
    try:
        yield holder
    finally:
        holder.free()


class _OneModel:
    """Holds at most one model: loads when asked for another, and switches the adapter where that is enough."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._loaded: tuple[ModelConfig, Path | None] | None = None
        self._model: Any = None

    @contextmanager
    def holding(self, subject: Subject) -> Iterator[Any]:
        """The subject's model, in evaluation mode."""
        wanted = (subject.model, subject.adapter)  # not the name alone: revision and precision count
        if self._loaded != wanted:
            self.free()
            self._model, self._loaded = self._load(subject), wanted
        if subject.adapter is None or subject.adapter_on:
            yield self._model
        else:
            with reference_mode(self._model):
                yield self._model

    def _load(self, subject: Subject) -> Any:
        model = load_base(subject.model)
        if subject.adapter is not None:
            base = source_digest(subject.model.model_name_or_path, subject.model.model_revision)
            model = load_adapter(model, subject.adapter, base_digest=base)
        quantised = subject.model.load_in_4bit or subject.model.load_in_8bit
        return (model if quantised else model.to(self._device)).eval()

    def free(self) -> None:
        """Give the memory back before another model is loaded."""
        self._model = self._loaded = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
