"""Run the teacher of a recipe on its forget rows: load its models, make its texts, and cache its distributions."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset, concatenate_datasets
from peft import PeftModel
from torch import Tensor

from llm_forget.core.digests import json_digest
from llm_forget.core.errors import ConfigError
from llm_forget.core.files import cache_folder
from llm_forget.core.ignore_label import IGNORE
from llm_forget.data.digest import tokens_digest
from llm_forget.data.rows import Row
from llm_forget.data.sources import load_source
from llm_forget.data.template import Template
from llm_forget.data.tokenise import control_tokenizer, encode_rows, ids_inside_a_sentence, tokenise_rows
from llm_forget.logprobs.batches import collate
from llm_forget.logprobs.levels import levels_of
from llm_forget.logprobs.logprobs import Logprobs, evaluation_mode, forward_logprobs
from llm_forget.models.adapters.lora import ADAPTER, reference_mode
from llm_forget.models.digest import identity_of, source_digest
from llm_forget.models.load import load_base, to_device
from llm_forget.teachers import TEACHERS
from llm_forget.teachers._registry import Context
from llm_forget.training.calibration import bisected, sample
from llm_forget.training.distillation.long_wait import from_main_process
from llm_forget.training.distillation.teacher_logprobs import TOP, TeacherLogprobs

if TYPE_CHECKING:
    from llm_forget.training.job import Job

FOLDER = "teacher"  # name of the folder in the cache folder
RETAIN_SAMPLE = 2000  # maximum number of retain rows that a teacher sees
BATCH = 16  # rows of a forward pass
CALIBRATION_ROWS = 64  # maximum number of forget rows, and of holdout rows, for the calibration of an argument
CALIBRATED_RANGE, BISECTIONS = (0.0, 4.0), 9
SMALL = "small"  # value of `base`: a small copy of the target, trained from scratch
LONGEST_ANSWER = 256  # maximum number of tokens in a generated answer


@dataclass(frozen=True)
class TeacherSpec:
    """The teacher of a recipe: its name, its arguments, and the models that it reads in addition to the target."""

    name: str
    arguments: dict[str, Any]
    models: dict[str, str] = field(default_factory=dict)  # oracle, aux_with, aux_without -> run or model
    base: str | None = None  # model from which missing auxiliary models are trained; `SMALL`: a new small model
    missing: tuple[str, ...] = ()  # names of auxiliary models that must be trained
    auxiliary: dict[str, Any] = field(default_factory=dict)  # recipe keys for this training

    def to_dict(self) -> dict[str, Any]:
        """Return the value of the key ``teacher`` in provenance.json, with the digest of each model."""
        models = {name: source_digest(source) for name, source in self.models.items()}
        return {"name": self.name, "arguments": self.arguments, "models": models}


def teacher_spec(value: Any, oracle: str | None) -> TeacherSpec | None:
    """Parse the recipe key ``teacher``: a name, or a mapping such as ``{name: stranger, k: 2}``.

    Return None if it is not set. Raise ConfigError for an unknown teacher or argument, or if a needed model is not set.
    """
    if value is None:
        return None
    form = {"name": value} if isinstance(value, str) else value
    if not isinstance(form, dict) or not isinstance(form.get("name"), str):
        raise ConfigError("teacher must be a name or a mapping with a name, as in {name: stranger, k: 1}")
    entry = TEACHERS.get(form["name"])
    needed = [name for name in entry.models if name != "target"]
    trained = [name for name in needed if name != "oracle"]
    keys = {*trained, *(("base", "auxiliary") if trained else ())}
    models = {name: str(form[name]) for name in trained if form.get(name)}
    models |= {"oracle": oracle} if oracle and "oracle" in needed else {}
    arguments = entry.arguments({key: part for key, part in form.items() if key not in {"name", *keys}})
    missing = tuple(name for name in needed if name not in models)
    if "oracle" in missing:
        raise ConfigError(f"teacher '{entry.name}' needs an oracle; set the key oracle to a run or a model")
    if missing and not form.get("base"):
        raise ConfigError(
            f"teacher '{entry.name}' needs the model {missing[0]}; name a run with {missing[0]} in the key teacher, or "
            f"set base there to the model that the target was fine-tuned from, or to '{SMALL}'"
        )
    base = str(form["base"]) if missing else None
    return TeacherSpec(entry.name, arguments, models, base, missing, _auxiliary(form.get("auxiliary")))


def _auxiliary(value: Any) -> dict[str, Any]:
    if value is not None and not isinstance(value, dict):
        raise ConfigError("auxiliary in the key teacher must be a mapping, as in {num_train_epochs: 5}")
    return dict(value or {})


@dataclass(frozen=True)
class Lesson:
    """The rows on which a policy learns from a teacher, and the teacher's distributions for these rows."""

    rows: Dataset  # tokenised: forget rows, then rows that `augment` added, then rows that the teacher added
    logprobs: TeacherLogprobs
    arguments: dict[str, Any]  # arguments of the teacher, after calibration
    cache: str  # name of the cache file
    cost: dict[str, Any]  # seconds, tokens, and whether the distributions were read from the cache

    def to_dict(self) -> dict[str, Any]:
        """Return facts for provenance.json: number and digest of the rows, and the name of the cache file."""
        return {"rows": {"rows": len(self.rows), "digest": tokens_digest(self.rows)}, "cache": self.cache}


def learn_from_teacher(job: Job, template: Template, target: Any, target_digest: str) -> Lesson:
    """Compute the distributions of a job's teacher, or read them from the cache.

    The main process runs the teacher. The others wait, and read the file that it writes.
    """
    assert job.teacher is not None
    teaching = _Teaching(job, template, target)

    def ask() -> tuple[dict[str, Any], list[Row], str, dict[str, Any]]:
        began, arguments, texts = time.perf_counter(), teaching.arguments(), teaching.texts()
        rows = teaching.with_texts(texts)
        file = cache_folder() / FOLDER / f"{teaching.cache_key(arguments, target_digest, rows)}.safetensors"
        if not (cached := file.is_file()):
            teaching.distributions(arguments, texts, rows).save(file)
        seconds = round(time.perf_counter() - began, 1)
        return arguments, texts, file.name, {"seconds": seconds, "tokens": teaching.tokens, "cached": cached}

    arguments, texts, file_name, cost = from_main_process(ask, Path(str(job.train.output_dir)), "the teacher")
    logprobs = TeacherLogprobs.load(cache_folder() / FOLDER / file_name)
    return Lesson(teaching.with_texts(texts), logprobs, arguments, file_name, cost)


class _Teaching:
    """One run of the teacher of a job, with its models, rows and token count."""

    def __init__(self, job: Job, template: Template, target: Any) -> None:
        assert job.teacher is not None
        self._template, self.tokens = template, 0  # that models processed
        self._job, self._entry, self._recipe_arguments = job, TEACHERS.get(job.teacher.name), job.teacher.arguments
        self._models = {"target": to_device(target)}
        self._sources: Mapping[str, str] = job.teacher.models
        self._rows: Dataset | None = None

    def texts(self) -> list[Row]:
        """Return the rows that the teacher adds to the forget rows."""
        return [] if self._entry.texts is None else self._entry.texts(self._context, **self._recipe_arguments)

    def arguments(self) -> dict[str, Any]:
        """Return the teacher's arguments. If the recipe does not set the calibrated one, find it by bisection."""
        name = self._entry.calibrated
        if not name or self._recipe_arguments[name] is not None or self._job.data.holdout is None:
            return self._recipe_arguments
        level = self._strength(self._forward("target", rows := self._load("holdout", CALIBRATION_ROWS)), rows)
        forget = self._load("forget", CALIBRATION_ROWS)
        context = replace(self._context, rows=forget)

        def strength_at(value: float) -> float:
            return self._strength(self._entry.function(context, **{**self._recipe_arguments, name: value}), forget)

        return {**self._recipe_arguments, name: round(bisected(strength_at, level, *CALIBRATED_RANGE, BISECTIONS), 4)}

    def _strength(self, logits: Iterator[Tensor], rows: Sequence[Row]) -> float:
        """Return the mean extraction strength of a model that has these logits at the targets of ``rows``."""
        values = []
        for row, part in zip(rows, logits, strict=True):
            labels = torch.tensor([self._targets(row)])
            mask = torch.ones_like(labels, dtype=torch.bool)
            logprobs = Logprobs(values=torch.zeros(labels.shape), mask=mask, labels=labels, logits=part.unsqueeze(0))
            values.append(float(levels_of(logprobs).strength))
        return sum(values) / len(values)

    def with_texts(self, texts: list[Row]) -> Dataset:
        """Return the tokenised rows: forget rows, rows of ``augment``, then ``texts``, which never change."""
        if self._rows is None:
            self._rows = self._job.training_splits["forget"]
            if texts:
                added = tokenise_rows(texts, self._job.tokenizer, self._template, **self._limits)
                self._rows = concatenate_datasets([self._rows, added])
        return self._rows

    def cache_key(self, arguments: dict[str, Any], target_digest: str, rows: Dataset) -> str:
        """Return a digest of everything that decides the distributions for the tokenised ``rows``.

        The teacher may read any column of a row, such as its names, and its models read other texts than ``rows``.
        """
        job = self._job
        assert job.teacher is not None
        key = {
            "teacher": {**job.teacher.to_dict(), "arguments": arguments},
            "target": identity_of(job.model, base=target_digest).digest,  # with the precision of all models
            "rows": tokens_digest(rows), "columns": json_digest([self._context.rows, self._context.retain]),
            "text": [control_tokenizer(job.tokenizer).digest(), asdict(self._template), self._limits],
            "temperature": job.objective.teacher_temperatures()["forget"], "seed": job.train.seed, "top": TOP,
            "version": 5,
        }  # fmt: skip
        return json_digest(key).removeprefix("sha256:")[:32]

    def distributions(self, arguments: dict[str, Any], texts: list[Row], rows: Dataset) -> TeacherLogprobs:
        context = replace(self._context, rows=[*self._context.rows, *texts])
        labels = (torch.tensor(context.targets(row)) for row in context.rows)
        counts = [sum(label != IGNORE for label in row[1:]) for row in rows["labels"]]
        temperature = self._job.objective.teacher_temperatures()["forget"]
        return TeacherLogprobs.of(self._entry.function(context, **arguments), labels, counts, temperature)

    @cached_property
    def _context(self) -> Context:
        added = [] if self._job.augmentation is None else self._job.augmentation.rows
        return Context(
            rows=[*self._load("forget"), *added], retain=self._load("retain", RETAIN_SAMPLE), forward=self._forward,
            generate=self._generate, tokens=ids_inside_a_sentence(self._job.tokenizer), targets=self._targets,
            seed=self._job.train.seed,
        )  # fmt: skip

    def _load(self, split: str, limit: int | None = None) -> list[Row]:
        data = self._job.data
        if getattr(data, split) is None:
            return []
        rows = load_source(getattr(data, split), split_name=split, data_path=data.data_path, fields=data.fields)
        return list(rows if limit is None else sample(rows, limit))

    @property
    def _limits(self) -> dict[str, int]:
        return {"max_length": self._job.data.max_length, "stride": self._job.data.stride}

    def _encode(self, rows: Sequence[Row]) -> Any:
        return encode_rows(rows, self._job.tokenizer, self._template, **self._limits)

    def _targets(self, row: Row) -> list[int]:
        return [label for w in self._encode([row])[0] for label in w.labels[1:] if label != IGNORE]

    def _model(self, name: str) -> Any:
        if name not in self._models:
            source = self._sources[name]
            changes: dict[str, Any] = {"model_name_or_path": source, "model_revision": "main", "use_peft": False}
            self._models[name] = to_device(load_base(replace(self._job.model, **changes)))
        return self._models[name]

    def _off(self, model: Any) -> Any:
        return reference_mode(model) if isinstance(model, PeftModel) and ADAPTER in model.peft_config else nullcontext()

    def _forward(self, name: str, rows: Sequence[Row]) -> Iterator[Tensor]:
        model, pad = self._model(name), int(self._job.tokenizer.pad_token_id)
        for start in range(0, len(rows), BATCH):
            windows = self._encode(rows[start : start + BATCH])
            flat = [vars(window) for row in windows for window in row]
            batch = {key: value.to(model.device) for key, value in collate(flat, pad).items()}
            self.tokens += int(batch["attention_mask"].sum())
            with torch.no_grad(), evaluation_mode(model), self._off(model):
                logprobs = forward_logprobs(model, batch, head=model.get_output_embeddings(), logits=True)
            assert logprobs.logits is not None
            parts = iter(zip(logprobs.logits.float().cpu(), logprobs.mask.cpu(), strict=True))
            for row in windows:
                yield torch.cat([values[mask] for values, mask in (next(parts) for _ in row)])

    def _generate(self, name: str, rows: Sequence[Row]) -> list[str]:
        model, tokenizer, answers = self._model(name), self._job.tokenizer, []
        padding = int(tokenizer.pad_token_id)
        longest = min(max(len(self._targets(row)) for row in rows) * 2, LONGEST_ANSWER)
        for start in range(0, len(rows), BATCH):
            prompts = [windows[0].prompt_ids for windows in self._encode(rows[start : start + BATCH])]
            padded = tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt").to(model.device)
            with torch.no_grad(), evaluation_mode(model), self._off(model):
                out = model.generate(**padded, max_new_tokens=longest, do_sample=False, pad_token_id=padding)
            generated = out[:, padded["input_ids"].shape[1] :]
            self.tokens += int(padded["attention_mask"].sum() + (generated != padding).sum())
            answers += tokenizer.batch_decode(generated, skip_special_tokens=True)
        return [answer.strip() for answer in answers]
