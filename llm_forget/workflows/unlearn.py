"""Unlearn: train an adapter on forget and retain rows, and write it into a run directory."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import PartialState
from trl import ModelConfig

from llm_forget.core.config import DataConfig, UnlearnConfig, from_keys, parse
from llm_forget.core.errors import ConfigError
from llm_forget.core.launch import refuse_processes, weights_are_sharded
from llm_forget.core.run_directory import Run, oracle_names
from llm_forget.core.run_kinds.unlearn import UNLEARN
from llm_forget.evals.suite import load_suites
from llm_forget.models.model_source import find_source
from llm_forget.objectives.methods import METHODS, Objective, build_objective
from llm_forget.teachers import TEACHERS
from llm_forget.teachers.divergence import UNCALIBRATED
from llm_forget.training.augmentation import augment_spec
from llm_forget.training.distillation.teacher_pass import TeacherSpec, teacher_spec
from llm_forget.training.gradient_combiner import GradientCombiner
from llm_forget.training.job import run_job
from llm_forget.training.weight_space.repselect import METHOD
from llm_forget.workflows import auto_method
from llm_forget.workflows.auxiliary_models import refuse_other_vocabularies, train_auxiliary_models

logger = logging.getLogger("llm_forget")


def main(argv: Sequence[str]) -> Run:
    """Unlearn with command-line arguments ``RECIPE.yaml --key value``."""
    return run_unlearning(*parse(argv, UnlearnConfig))


def unlearn(**keys: Any) -> Run:
    """Unlearn with the keys of a recipe as arguments. Return the finished `Run`, whose adapter is in ``run.adapter``.

    Example:
        ``unlearn(model_name_or_path="org/model", forget="forget.jsonl", retain="retain.jsonl", output_dir="runs/a")``

    Raise ConfigError, DataError or RunError for an invalid key, row or combination of keys.
    """
    return run_unlearning(*from_keys(keys, UnlearnConfig))


def run_unlearning(data: DataConfig, train: UnlearnConfig, model: ModelConfig) -> Run:
    """Unlearn with a checked configuration. `unlearn` and the command line call this function."""
    if train.method == auto_method.AUTO:
        auto_method.resolve(data, train, model)
    weight_step = _weight_step(train, model)
    arguments = None if weight_step is not None else _mapping(train.method_args)
    objective = build_objective(train.method, arguments, _mapping(train.objective))
    gradient = _gradient(train)
    _check_keys(data, train, objective, gradient)
    oracles = oracle_names(train.oracle)
    teacher = teacher_spec(train.teacher, oracles[0] if oracles else None)
    if (teacher is None) == bool(objective.teacher_temperatures()):
        missing = "set teacher" if teacher is None else "remove teacher, or use a term such as distil"
        raise ConfigError(f"a teacher and a term that learns from one go together; {missing}")
    augment = augment_spec(train.augment, teacher.arguments.get("names") if teacher else None)
    if augment is not None and ("forget" not in objective.splits() or objective.needs_alternate()):
        raise ConfigError(
            "augment adds forget rows without preferred answers, which this objective cannot use; remove augment, or "
            "choose another method"
        )
    if teacher is not None:
        refuse_other_vocabularies(teacher, model)
    stop_at_holdout = _stops_at_holdout(data, train, objective)
    calibrated = bool(objective.uncalibrated()) and data.holdout is not None
    if (teacher or stop_at_holdout or calibrated) and weights_are_sharded():
        key = "teacher" if teacher else "stop_at" if stop_at_holdout else "holdout"
        raise ConfigError(f"{key} needs whole weights in every process; use one process or ddp, or remove {key}")
    _warn_without_holdout(data, teacher, objective)
    if teacher is not None and not train.dry_run and (train.overwrite or not Run(Path(str(train.output_dir))).complete):
        teacher = train_auxiliary_models(teacher, data, train, model)
    return run_job(
        UNLEARN, data, train, model, objective,
        gradient=gradient, max_retain_drop=train.max_retain_drop, teacher=teacher,
        stop_at_holdout=stop_at_holdout, weight_step=weight_step,
        augment=augment,
    )  # fmt: skip


def _weight_step(train: UnlearnConfig, model: ModelConfig) -> dict[str, Any] | None:
    """Return the arguments of a method that makes one step in weight space, or None for a method that trains.

    Raise ConfigError for keys that have no effect on such a method.
    """
    if train.method != METHOD.name:
        return None
    refuse_processes(METHOD.name, PartialState())
    unused = {
        "stop_at": train.stop_at == "holdout", "max_retain_drop": train.max_retain_drop is not None,
        "gradient": train.gradient not in (None, "sum"), "use_peft: false": not model.use_peft,
        "use_dora": model.use_dora, "load_in_4bit": model.load_in_4bit, "load_in_8bit": model.load_in_8bit,
    }  # fmt: skip
    for key, is_set in unused.items():
        if is_set:
            raise ConfigError(f"method '{METHOD.name}' takes one step and stores it as an adapter; remove {key}")
    return METHOD.arguments(_mapping(train.method_args) or {})


def _stops_at_holdout(data: DataConfig, train: UnlearnConfig, objective: Objective) -> bool:
    """Return whether the two-sided stop is on. By default, it is on if holdout rows calibrate a teacher or a term."""
    if train.stop_at == "holdout" and data.holdout is None:
        raise ConfigError("stop_at: holdout needs rows that were never trained on; set the key holdout")
    if train.stop_at == "holdout" and "forget" not in objective.splits():
        raise ConfigError("stop_at: holdout measures forget rows, but no term of this objective uses them; remove it")
    return train.stop_at == "holdout" or (
        train.stop_at is None and data.holdout is not None and bool(train.teacher or objective.uncalibrated())
    )


def _warn_without_holdout(data: DataConfig, teacher: TeacherSpec | None, objective: Objective) -> None:
    """Log a warning if values should be calibrated, but the recipe has no holdout rows. It states the values used."""
    terms = objective.uncalibrated()
    if data.holdout is not None or not (teacher or terms) or not PartialState().is_main_process:
        return
    values = ["the last step is kept"]
    if teacher is not None and (name := TEACHERS.get(teacher.name).calibrated) and teacher.arguments[name] is None:
        values.append(f"{name} of teacher '{teacher.name}' is {UNCALIBRATED:g}")
    values += [f"{term.calibrated} of {term.key} has its default" for term in terms]
    logger.warning(
        "no holdout rows are given, so nothing shows where unlearning should end: %s; set the key holdout if you can",
        ", ".join(values),
    )


def _gradient(train: UnlearnConfig) -> GradientCombiner | None:
    name = train.gradient or (METHODS[train.method].gradient if train.method else "sum")
    if name == "sum":
        if train.gradient_args:
            raise ConfigError("gradient_args is set, but gradient 'sum' has no parameters; set gradient")
        return None
    return GradientCombiner(name, _mapping(train.gradient_args))


def _mapping(value: Any) -> dict[str, Any] | None:
    if value is None or isinstance(value, dict):
        return value
    raise ConfigError("method_args, objective and gradient_args must be mappings, as in {beta: 0.5}")


def _check_keys(
    data: DataConfig, train: UnlearnConfig, objective: Objective, gradient: GradientCombiner | None
) -> None:
    """Raise an error for missing rows, keys that this objective does not use, and unknown suites and oracles."""
    for split, temperature in objective.teacher_temperatures().items():
        if not temperature > 0:
            raise ConfigError(f"temperature of the term on {split} rows is {temperature:g}; it must be above 0")
    splits = objective.splits()
    for split in splits:
        if getattr(data, split) is None:
            raise ConfigError(f"the objective needs rows of '{split}'; set the key '{split}' to a file or data set")
    if data.alternate is not None and not objective.needs_alternate():
        raise ConfigError("alternate is set, but no term of this objective uses preferred answers; remove it")
    if data.train is not None and "train" not in splits:
        raise ConfigError("train is a key of finetune; unlearn reads forget and retain (for evaluation: `splits`)")
    if train.max_retain_drop is not None and "retain" not in splits:
        raise ConfigError("max_retain_drop needs retain rows, but no term of this objective uses them; remove it")
    if gradient is not None and gradient.name != "sam" and not {"forget"} < set(splits):
        raise ConfigError(f"gradient rule '{gradient.name}' combines two gradients, but the objective has only one")
    if train.suite is not None:
        load_suites(train.suite)
    for oracle in oracle_names(train.oracle):
        find_source(oracle)  # detects a mistyped path before training
