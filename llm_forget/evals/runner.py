"""Measure models with the probes of a suite. Stored records are reused, and only one model is in memory at a time.

The target (the model before unlearning) is the unlearned model with its adapter off, so both are loaded as one model.
Records of the target and the oracle (a model that never saw the forget rows) are stored once for all runs that use
these models, and copied into each run. Several processes each load the model and measure a share of the rows.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import PartialState

from llm_forget.core import formats
from llm_forget.core.digests import content_key, file_digest
from llm_forget.core.errors import EvaluationError
from llm_forget.core.files import cache_folder
from llm_forget.core.formats.results import TaskScores
from llm_forget.core.registry import did_you_mean
from llm_forget.evals.lm_eval.harness import run_lm_eval
from llm_forget.evals.lm_eval.tasks import task_key
from llm_forget.evals.probes.distributed import close_share, from_main_process, open_share, refuse_different_keys
from llm_forget.evals.probes.gradients import probe_gradients
from llm_forget.evals.probes.inputs import Work, judge_work
from llm_forget.evals.probes.probes import probe_generate, probe_logprobs
from llm_forget.evals.probes.progress import Meter, meter
from llm_forget.evals.probes.vllm import probe_generate_vllm, start_engine
from llm_forget.evals.records import RecordWriter, load_records, write_records
from llm_forget.evals.suite import Task
from llm_forget.models.adapters.files import load_adapter
from llm_forget.models.adapters.lora import reference_mode
from llm_forget.models.digest import identity_of, source_digest
from llm_forget.models.load import load_base
from llm_forget.models.model_source import find_source

if TYPE_CHECKING:
    from trl import ModelConfig

RECORD_KIND = {"logprobs": "logprobs", "judge": "logprobs", "gradients": "gradients", "generate": "generate"}


@dataclass(frozen=True)
class EvaluatedModel:
    """A model to measure: its configuration, its adapter, and whether the adapter is on."""

    role: str  # before | unlearned | oracle
    model: ModelConfig
    adapter: Path | None = None
    adapter_on: bool = True
    vllm: bool = False  # generations come from vLLM, not from transformers

    @cached_property
    def digest(self) -> str:
        """Digest of the weights, of the adapter if it is on, and of the precision."""
        return identity_of(self.model, adapter=self.adapter if self.adapter_on else None).digest

    def key(self, work: Work) -> str:
        """Return a digest of all inputs of a probe's records; for generations, it includes generation_config.json."""
        ends = self._generation_config if work.kind == "generate" else None
        engine = {"engine": "vllm"} if self.generates_with_vllm(work) else {}
        return content_key(model=self.digest, work=work.digest, ends=ends, **engine)

    def generates_with_vllm(self, work: Work) -> bool:
        return self.vllm and work.kind == "generate"

    @cached_property
    def _generation_config(self) -> str | None:
        # Only of a folder: the digest of any other source, such as a commit or a GGUF file, covers this file.
        source = find_source(self.model.model_name_or_path)
        file = Path(source.location) / "generation_config.json"
        return file_digest(file) if source.kind == "folder" and file.is_file() else None

    @property
    def name(self) -> str:
        """Display name of the model, without local paths."""
        if self.adapter is not None and self.adapter_on:
            return self.adapter.resolve().parent.name
        name = str(self.model.model_name_or_path)
        return Path(name).resolve().name if Path(name).exists() else name


def measure(
    evaluated_models: dict[str, EvaluatedModel],
    works: dict[str, Work],
    tokenizer: Any,
    *,
    device: torch.device,
    folder: Path | None = None,
    batch_size: int = 64,
    quiet: bool = False,
    tasks: dict[str, Task] | None = None,
    data_path: str | None = None,
) -> dict[str, dict[str, Any]]:
    """Return the records by role and ``suite/probe``. Stored records are read from disk, the others are measured.

    Every process of a launch must call this function and gets all records. Only the main process writes complete files.

    Args:
        evaluated_models: models by role, measured in this order; all share the tokenizer.
        works: probes with their rows, by ``suite/probe``.
        device: where models are loaded, unless they are quantised.
        folder: where ``<role>/<probe>-<digest>.jsonl`` are stored; None stores records in the cache only.
        tasks: lm-eval tasks by ``suite/line``; their numbers are returned among the records, under the same keys.
        data_path: folder with the data of our lm-eval tasks; default: the Hub.

    Raises EvaluationError if several processes run lm-eval tasks, or if the processes have different rows or models.
    """
    records: dict[str, dict[str, Any]] = {role: {} for role in evaluated_models}
    quiet = quiet or not PartialState().is_main_process
    with meter(quiet=quiet) as progress, closing(_ModelHolder(device)) as holder:
        session = _Session(holder, tokenizer, folder, batch_size, progress)
        for role, evaluated in evaluated_models.items():
            for name, work in works.items():
                if work.kind != "judge" and not evaluated.generates_with_vllm(work):
                    records[role][name] = _with_data_fields(session.records(evaluated, role, work), work)
            for name, task in (tasks or {}).items():
                records[role][name] = session.task(evaluated, role, task, data_path)
        # Generations by vLLM come last and together: loading is slow, and a run and its target share one engine.
        for role, evaluated in evaluated_models.items():
            for name, work in works.items():
                if evaluated.generates_with_vllm(work):
                    records[role][name] = _with_data_fields(session.records(evaluated, role, work), work)
        # One model judges the texts of all models: the target, or the model itself if there is no target.
        for role, evaluated in evaluated_models.items():
            for name, work in works.items():
                if work.kind == "judge":
                    texts = name.removesuffix(work.probe.name) + str(work.probe.generations)
                    reading = judge_work(work.probe, works[texts].prompt_rows, records[role][texts], tokenizer)
                    judged = session.records(evaluated_models.get("before", evaluated), role, reading)
                    records[role][name] = _with_data_fields(judged, replace(reading, subjects=works[texts].subjects))
    return records


@dataclass(frozen=True)
class _Session:
    """The objects that all measurements of one evaluation share."""

    holder: _ModelHolder
    tokenizer: Any
    folder: Path | None
    batch_size: int
    progress: Meter

    def records(self, evaluated: EvaluatedModel, role: str, work: Work) -> list[Any]:
        """Return the records of one probe for one role. If they are not on disk, measure and store them."""
        main = PartialState().is_main_process
        key = evaluated.key(work)
        refuse_different_keys(key)
        run_file = self._run_file(role, work, key)
        path = (
            run_file if run_file is not None and role == "unlearned" else _shared_file(evaluated, work, key, run_file)
        )
        records = from_main_process(load_records(path, key) if main else None)
        if records is None:
            records = self._run(evaluated, role, work, open_share(path, RECORD_KIND[work.kind], key, work))
        if main and run_file is not None and path != run_file and load_records(run_file, key) is None:
            write_records(run_file, RECORD_KIND[work.kind], key, records)
        return records

    def task(self, evaluated: EvaluatedModel, role: str, task: Task, data_path: str | None) -> dict[str, Any]:
        """Return one number of an lm-eval task, with its interval. If it is not in the cache, compute and store it.
        Raise EvaluationError if the task has no such metric.
        """
        data = Path(data_path) if data_path is not None else None
        settings: dict[str, Any] = {
            "num_fewshot": task.num_fewshot,
            "limit": task.limit,
            "apply_chat_template": task.apply_chat_template,
        }
        key = content_key(model=evaluated.digest, task=task_key(task.task, data_path=data, **settings))
        path = cache_folder() / "records" / f"{key}.json"
        if path.is_file():
            numbers = formats.read_content(path, TaskScores, advice="delete it")
        else:
            with self.holder.holding(evaluated) as model, self.progress.task(f"{role}/{task.task}") as under_way:
                numbers = run_lm_eval(
                    model, self.tokenizer, [task.task], batch_size=self.batch_size, data_path=data,
                    expect=under_way.expect, advance=under_way.advance, **settings,
                )  # fmt: skip
            formats.write(path, numbers, TaskScores)
        prefix = f"{task.task}."
        metrics = {name.removeprefix(prefix): value for name, value in numbers.items() if name.startswith(prefix)}
        if task.metric not in metrics:
            raise EvaluationError(
                f"lm-eval task '{task.task}' has no metric '{task.metric}'; {did_you_mean(task.metric, metrics)}"
            )
        return metrics[task.metric]

    def _run_file(self, role: str, work: Work, key: str) -> Path | None:
        """Return the path of a probe's records in the run. It contains a digest, as suites may share probe names."""
        if self.folder is None:
            return None
        same = sorted((self.folder / role).glob(f"*-{key[:12]}.jsonl"))
        return same[0] if same else self.folder / role / f"{work.probe.name}-{key[:12]}.jsonl"

    def _run(self, evaluated: EvaluatedModel, role: str, work: Work, writer: RecordWriter) -> list[Any]:
        # Only this function may hold the model: a longer-lived reference would keep two models in memory.
        done, share = len(writer.available()), len(writer.missing())
        name = f"{role}/{work.probe.name}"
        vllm = evaluated.generates_with_vllm(work)
        with self.holder.holding(evaluated, vllm) as model, self.progress.task(name, done + share, done) as task:
            advance = task.advance
            if work.kind == "generate":
                probe = work.probe
                options: dict[str, Any] = {"temperature": probe.temperature, "top_p": probe.top_p, "seed": probe.seed}
                options |= {"max_new_tokens": probe.max_new_tokens, "advance": advance}
                arguments = (model, self.tokenizer, work.prompt_rows, writer)
                if vllm:
                    probe_generate_vllm(*arguments, adapter_on=evaluated.adapter_on, **options)
                else:
                    probe_generate(*arguments, batch_size=self.batch_size, **options)
            elif work.kind == "gradients":
                probe_gradients(model, work.token_rows, writer, advance=advance)
            else:
                options = {"batch_size": self.batch_size, "advance": advance, "top": work.probe.top}
                probe_logprobs(model, work.token_rows, writer, **options)
        return close_share(writer)


def _shared_file(evaluated: EvaluatedModel, work: Work, key: str, run_file: Path | None) -> Path:
    """Return the path of the records of a target or oracle, which all runs that are compared with this model share.

    Generated text and most likely tokens may repeat forget rows. They are stored in the run that contains the model, or
    else in the evaluated run, so that they are deleted with the run. Records of numbers are stored in the cache.
    """
    if work.kind == "generate" or work.probe.top is not None:
        home = Path(str(evaluated.model.model_name_or_path))
        if (home / "run.json").is_file():
            return home / "records" / "shared" / f"{key}.jsonl"
        if run_file is not None:
            return run_file
    return cache_folder() / "records" / f"{key}.jsonl"


def _with_data_fields(records: list[Any], work: Work) -> list[Any]:
    """Add the fields that come from the data, such as the reference answer, because record files lack them."""
    prompts = {row.key: row for row in work.prompt_rows}

    def fields(record: Any) -> dict[str, Any]:
        if work.kind == "generate":
            return {"reference": prompts[record.key].reference, "columns": prompts[record.key].columns}
        if work.kind == "logprobs":
            return {"zlib_bytes": work.zlib_bytes[record.key], "answer": work.answers[record.key]}
        return {}

    return [replace(record, subject=work.subjects.get(record.id), **fields(record)) for record in records]


class _ModelHolder:
    """Keeps at most one model in memory. Another model is loaded only if switching the adapter is not enough."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._loaded: tuple[ModelConfig, Path | None, bool] | None = None
        self._model: Any = None

    @contextmanager
    def holding(self, evaluated: EvaluatedModel, vllm: bool = False) -> Iterator[Any]:
        """Yield the model in evaluation mode with its adapter on or off; with ``vllm``, yield a vLLM engine."""
        loaded = (evaluated.model, evaluated.adapter, vllm)  # the model contains its revision and precision
        if self._loaded != loaded:
            self.close()
            self._model = start_engine(evaluated.model, evaluated.adapter) if vllm else self._load(evaluated)
            self._loaded = loaded
        if evaluated.adapter is None or evaluated.adapter_on or vllm:
            yield self._model
        else:
            with reference_mode(self._model):
                yield self._model

    def _load(self, evaluated: EvaluatedModel) -> Any:
        model = load_base(evaluated.model)
        if not (evaluated.model.load_in_4bit or evaluated.model.load_in_8bit):
            model = model.to(self._device)
        if evaluated.adapter is not None:
            base = source_digest(evaluated.model.model_name_or_path, evaluated.model.model_revision)
            model = load_adapter(model, evaluated.adapter, base_digest=base)
        return model.eval()

    def close(self) -> None:
        """Free the memory of the loaded model."""
        self._model = self._loaded = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
