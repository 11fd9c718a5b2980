"""Train the auxiliary models that the teachers ``divergence`` and ``base`` read, with and without the forget rows.

Each is a run with its own folder, ``<output_dir>-aux_with`` or ``<output_dir>-aux_without``. The model ``aux_with`` can
be reused when further rows of the same data must be forgotten: set ``aux_with: RUN`` in their recipe.
"""

import dataclasses
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import PartialState
from trl import ModelConfig

from llm_forget.core.config import DataConfig, UnlearnConfig
from llm_forget.core.errors import ConfigError
from llm_forget.models.load import vocabulary_size
from llm_forget.models.small_copy import save_small_copy
from llm_forget.training.distillation.teacher_pass import SMALL, TeacherSpec
from llm_forget.workflows.finetune import finetune

FROM_SCRATCH = {"learning_rate": 2e-3, "num_train_epochs": 20, "use_peft": False}
ON_BASE = {"learning_rate": 1e-3, "num_train_epochs": 10, "use_peft": True, "lora_r": 16, "lora_alpha": 32}
SHARED = {"lr_scheduler_type": "cosine", "warmup_steps": 0.05, "weight_decay": 0.0, "logging_steps": 20}
ROWS = ("forget", "retain", "holdout", "train", "alternate", "splits")
TRAINING = ("seed", "per_device_train_batch_size", "gradient_accumulation_steps", "use_cpu", "bf16", "disable_tqdm")


def train_auxiliary_models(
    teacher: TeacherSpec, data: DataConfig, train: UnlearnConfig, model: ModelConfig
) -> TeacherSpec:
    """Train the models that a teacher lacks, and return the teacher with all its models.

    Finished models are trained again only with ``overwrite``. Raise ConfigError without retain rows.
    """
    if teacher.base is None:
        return teacher
    if data.retain is None:
        raise ConfigError(f"teacher '{teacher.name}' trains models on retain rows; set the key retain to a file")
    start = {"model_name_or_path": teacher.base, **ON_BASE}
    if teacher.base == SMALL:
        folder = Path(f"{train.output_dir}-small")
        with PartialState().main_process_first():
            folder.parent.mkdir(parents=True, exist_ok=True)
            if train.overwrite and PartialState().is_main_process:
                shutil.rmtree(folder, ignore_errors=True)  # the target may be another one
            save_small_copy(model, folder, train.seed)
        start = {"model_name_or_path": str(folder), **FROM_SCRATCH}
    keys = {f.name: getattr(data, f.name) for f in dataclasses.fields(data) if f.name not in ROWS}
    keys |= {name: getattr(train, name) for name in TRAINING}
    keys |= {**SHARED, **start, **teacher.auxiliary, "save_strategy": "no", "overwrite": train.overwrite}
    models = dict(teacher.models)
    for name in teacher.missing:
        run = finetune(**_without_none(keys), train=_rows(name, data), output_dir=f"{train.output_dir}-{name}")
        models[name] = str(run.path)
    return replace(teacher, models=models, base=None)


def refuse_other_vocabularies(teacher: TeacherSpec, model: ModelConfig) -> None:
    """Raise ConfigError if the number of logits of a teacher's model differs from that of the target."""
    sources = dict(teacher.models) | ({"base": teacher.base} if teacher.base not in (None, SMALL) else {})
    for name, source in sources.items():
        size = vocabulary_size(replace(model, model_name_or_path=source, model_revision="main"))
        if size != (target_size := vocabulary_size(model)):
            raise ConfigError(
                f"the model '{source}' ({name} of teacher '{teacher.name}') has {size:,} logits, but the target has "
                f"{target_size:,}; name one with the target's tokenizer, or set base: {SMALL}"
            )


def _rows(name: str, data: DataConfig) -> Any:
    sources = [data.forget, data.retain] if name == "aux_with" else [data.retain]
    flat = [_unweighted(source) for part in sources for source in (part if isinstance(part, list) else [part])]
    return flat if len(flat) > 1 else flat[0]


def _unweighted(source: Any) -> Any:
    """Return a source without its weight in a mixture, because an epoch of `finetune` contains every row."""
    return {key: value for key, value in source.items() if key != "weight"} if isinstance(source, dict) else source


def _without_none(keys: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in keys.items() if value is not None}
