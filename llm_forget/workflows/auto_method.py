"""`method: auto`: choose a teacher, and set learning rate, epochs, batch and rank if the recipe does not set them."""

import dataclasses
import logging
import math
from pathlib import Path
from typing import Any

from accelerate import PartialState
from datasets import Dataset
from trl import ModelConfig

from llm_forget.core.config import DataConfig, UnlearnConfig
from llm_forget.core.errors import ConfigError, DataError
from llm_forget.core.run_directory import Run
from llm_forget.data.names import texts_of
from llm_forget.data.rows import is_text
from llm_forget.data.sources import load_source
from llm_forget.data.tokenise import ids_inside_a_sentence, tokenise_rows
from llm_forget.models.load import load_base, load_tokenizer, meta_model, to_device
from llm_forget.teachers import borrowed_names, names_of, other_names
from llm_forget.training.calibration import forward_of, measure, sample
from llm_forget.training.distillation.teacher_pass import RETAIN_SAMPLE, SMALL
from llm_forget.training.job import template_of

logger = logging.getLogger("llm_forget")

AUTO = "auto"
TOKENS_PER_BATCH = 1024  # number of tokens of forget rows in a batch
BATCH_SIZES = (4, 24)  # minimum and maximum
CHARACTERS_PER_TOKEN = 4  # approximate; used only for the size of a batch
STEPS = 480  # number of steps of the whole training
EPOCHS = (5, 100)  # minimum and maximum
ROWS_PER_ROW = {"stranger": 3}  # training rows for each forget row, including rows that the teacher adds
RANK = 64  # rank of the adapter; alpha is twice the rank
UNTRAINED = 0.8  # a base with a loss above this share of log V (the loss of a guess) counts as untrained
BASE_ROWS = 16  # number of retain rows on which this loss is measured
# (maximum number of parameters, learning rate). Only the first was measured: with 2.6 million parameters (LOG.md).
RATES = ((20e6, 2e-3), (1e9, 4e-4), (math.inf, 1e-4))


def resolve(data: DataConfig, train: UnlearnConfig, model: ModelConfig) -> None:
    """Replace `method: auto` in a configuration, in place, by a method with a teacher. Log the choice and the reason.

    Keys that the recipe or the command line sets are not changed. Raise ConfigError if the forget rows are missing, or
    if objective or method_args is set.
    """
    if train.objective is not None or train.method_args:
        raise ConfigError("method auto chooses the objective; remove objective and method_args, or name a method")
    if data.forget is None:
        raise ConfigError("method auto needs the rows to forget; set the key 'forget' to a file or data set")
    rows = list(_load(data, "forget"))
    teacher, reason = (train.teacher, "as given") if train.teacher else _teacher(data, model, rows)
    train.method, train.teacher = "distil", teacher
    train.method_args = {"temperature": 1.0, **({} if data.retain else {"retain_weight": 0.0})}
    settings = _settings(train, model, rows, len(rows) * ROWS_PER_ROW.get(_name(teacher), 1))
    for name, value in settings.items():
        setattr(train if hasattr(train, name) else model, name, value)
    if PartialState().is_main_process:
        words = ", ".join(f"{name} {value:g}" for name, value in settings.items() if isinstance(value, int | float))
        logger.info("method auto: distil with teacher %s, %s%s", _name(teacher), reason, f"; {words}" if words else "")
        if data.retain is None:
            logger.warning("no retain rows are given, so other knowledge may be lost; set the key retain if you can")


def _load(data: DataConfig, split: str) -> Dataset:
    return load_source(getattr(data, split), split_name=split, data_path=data.data_path, fields=data.fields)


def _name(teacher: Any) -> str:
    return teacher if isinstance(teacher, str) else str(teacher["name"])


def _teacher(data: DataConfig, model: ModelConfig, rows: list[Any]) -> tuple[Any, str]:
    """Return (teacher, reason): the best teacher that the rows and the target allow."""
    if data.retain is None:
        return "self", "since there are no retain rows to train another model on"
    retain = list(sample(_load(data, "retain"), RETAIN_SAMPLE))
    if not any(is_text(row) for row in rows) and _can_borrow_names(rows, retain, model):
        return "stranger", f"since each of the {len(rows)} forget rows names its subject"
    base = _base(data, model, retain)
    why = "since not every forget row is an answer about a name for which others can be borrowed"
    return {"name": "divergence", "base": base}, f"{why}; its two models are trained on '{base}'"


def _can_borrow_names(rows: list[Any], retain: list[Any], model: ModelConfig) -> bool:
    """Return whether teacher ``stranger`` finds names in all forget rows and can invent names to replace them."""
    try:
        names, others = names_of(rows, "subject_name"), other_names(retain, "subject_name")
        borrowed_names(names, others, ids_inside_a_sentence(load_tokenizer(model)), 1, 0)
    except DataError:
        return False
    return True


def _base(data: DataConfig, model: ModelConfig, retain: list[Any]) -> str:
    """Return the model that the target was fine-tuned from, or `SMALL` if it is unknown or was never trained."""
    run = Run(Path(str(model.model_name_or_path)))
    if not run.provenance_file.is_file():
        return SMALL
    name = str(run.provenance["base"]["name"])
    return name if _is_trained(name, data, model, retain) else SMALL


def _is_trained(name: str, data: DataConfig, model: ModelConfig, retain: list[Any]) -> bool:
    """Return whether a model predicts retain rows better than a guess. Adapters on an untrained model learn nothing."""
    tokenizer = load_tokenizer(model)
    limits = {"max_length": data.max_length, "stride": data.stride}
    rows = tokenise_rows(retain[:BASE_ROWS], tokenizer, template_of(data, tokenizer), **limits)
    base = load_base(dataclasses.replace(model, model_name_or_path=name, model_revision="main", use_peft=False))
    logprobs = measure(forward_of(to_device(base), int(tokenizer.pad_token_id)), rows)["logprob"]  # [N]
    return -float(logprobs.mean()) < UNTRAINED * math.log(base.config.get_text_config().vocab_size)


def _settings(train: UnlearnConfig, model: ModelConfig, rows: list[Any], trained_rows: int) -> dict[str, Any]:
    """Return values for the keys that neither the recipe nor the command line sets."""
    defaults = {f.name: f.default for cls in (UnlearnConfig, ModelConfig) for f in dataclasses.fields(cls)}
    tokens = sum(len(" ".join(texts_of(row))) for row in rows) / len(rows) / CHARACTERS_PER_TOKEN

    def is_free(name: str) -> bool:
        return name not in train.given_keys and _value(train, model, name) == defaults[name]

    batch = train.per_device_train_batch_size
    if is_free("per_device_train_batch_size"):
        batch = _within(TOKENS_PER_BATCH / max(tokens, 1), BATCH_SIZES)
    rank = RANK if is_free("lora_r") else model.lora_r
    parameters = meta_model(model).num_parameters()
    settings = {
        "learning_rate": next(rate for limit, rate in RATES if parameters <= limit),
        "num_train_epochs": float(_within(STEPS * batch / trained_rows, EPOCHS)),
        "per_device_train_batch_size": batch,
        "lr_scheduler_type": "cosine",
        **({"lora_r": rank, "lora_alpha": 2 * rank} if is_free("lora_alpha") else {}),
    }
    return {name: value for name, value in settings.items() if is_free(name)}


def _value(train: UnlearnConfig, model: ModelConfig, name: str) -> Any:
    return getattr(train if hasattr(train, name) else model, name)


def _within(value: float, limits: tuple[int, int]) -> int:
    return min(max(round(value), limits[0]), limits[1])
