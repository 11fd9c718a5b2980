"""Train one run, from its configuration to a finished run directory. `unlearn` and `finetune` use this module."""

import contextlib
import copy
import logging
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from accelerate import PartialState
from datasets import Dataset, concatenate_datasets
from peft import PeftModel
from transformers import PreTrainedTokenizerBase, ProgressCallback, set_seed
from trl import ModelConfig
from trl.trainer.utils import disable_dropout_in_model

from llm_forget.core import formats
from llm_forget.core.config import DataConfig, TrainConfig, UnlearnConfig, identity, resolved
from llm_forget.core.digests import json_digest
from llm_forget.core.environment import environment
from llm_forget.core.errors import ConfigError
from llm_forget.core.formats.run import Provenance
from llm_forget.core.launch import check_launch
from llm_forget.core.run_directory import Run, oracle_names
from llm_forget.core.run_kinds import RunKind
from llm_forget.data.preferred_answers import pair_windows, with_alternates
from llm_forget.data.rows import check_overlap
from llm_forget.data.sources import load_source, mixture_weights
from llm_forget.data.template import TEMPLATE_KEYS, Template, template_for
from llm_forget.data.tokenise import tokenise_dataset
from llm_forget.models.adapters.files import save_adapter
from llm_forget.models.adapters.logit_fingerprint import effect_of
from llm_forget.models.adapters.lora import attach_adapter, prepare_gradient_checkpointing
from llm_forget.models.digest import source_digest
from llm_forget.models.load import load_base, load_tokenizer, to_device
from llm_forget.objectives.methods import Objective
from llm_forget.teachers import TEACHERS
from llm_forget.training import dry_run
from llm_forget.training.augmentation import Augment, Augmentation, added_rows
from llm_forget.training.calibration import forward_of, sample, share_of_unknown
from llm_forget.training.callbacks import MetricsFile, ProgressLine, peak_memory
from llm_forget.training.distillation.cost import auxiliary_cost, retraining_cost, token_share
from llm_forget.training.distillation.teacher_pass import Lesson, TeacherSpec, learn_from_teacher
from llm_forget.training.gradient_combiner import GradientCombiner
from llm_forget.training.provenance import describe, row_subjects, write_lists
from llm_forget.training.trainer import UnlearnTrainer
from llm_forget.training.two_sided_stop import TwoSidedStop
from llm_forget.training.weight_space.repselect import WeightStep, mlp_targets, repselect

logger = logging.getLogger("llm_forget")
# Hide a warning: if file times are coarse, transformers sorts checkpoints by number instead, which is correct.
logging.getLogger("transformers.trainer_utils").addFilter(lambda record: "mtime may not" not in record.getMessage())


@dataclass(frozen=True)
class Job:
    """A training job: settings, objective, tokenised rows and tokenizer. It is checked before weights are loaded."""

    kind: RunKind
    data: DataConfig
    train: TrainConfig
    model: ModelConfig
    objective: Objective
    splits: dict[str, Dataset]  # tokenised
    tokenizer: PreTrainedTokenizerBase
    gradient: GradientCombiner | None = None
    max_retain_drop: float | None = None
    subject_tables: Mapping[str, Dataset | None] = field(default_factory=dict)  # ids and subjects of each split's rows
    teacher: TeacherSpec | None = None
    stop_at_holdout: bool = False
    weight_step: Mapping[str, Any] | None = None  # arguments of a method without training, see `weight_space`
    augmentation: Augmentation | None = None

    @cached_property
    def training_splits(self) -> dict[str, Dataset]:
        """Return the splits to train on. Rows that ``augment`` adds follow the forget rows."""
        if self.augmentation is None:
            return self.splits
        forget = concatenate_datasets([self.splits["forget"], self.augmentation.tokens])
        return {**self.splits, "forget": forget}


def run_job(
    kind: RunKind,
    data: DataConfig,
    train: TrainConfig,
    model: ModelConfig,
    objective: Objective,
    *,
    gradient: GradientCombiner | None = None,
    max_retain_drop: float | None = None,
    teacher: TeacherSpec | None = None,
    stop_at_holdout: bool = False,
    weight_step: Mapping[str, Any] | None = None,
    augment: Augment | None = None,
) -> Run:
    """Train the run in ``output_dir``, unless it is complete, and return it. With ``dry_run``, only print its plan.

    Files are written only after all checks of the data. Raise ConfigError if the number of processes is not the
    requested one, and RunError if ``output_dir`` contains another run or other files.
    """
    state = PartialState()
    check_launch(state)
    set_seed(train.seed)
    run = Run(Path(str(train.output_dir)))
    if not train.overwrite:
        run.refuse_other(kind.name, _identity(data, train, model))
    if run.complete and not train.dry_run and not train.overwrite:
        if state.is_main_process:
            logger.info("run '%s' is already complete; use --overwrite true to train it again", run.path)
        return run
    tokenizer, splits, subject_tables = prepare(data, model, objective)
    job = Job(
        kind, data, train, model, objective, splits, tokenizer,
        gradient, max_retain_drop, subject_tables, teacher, stop_at_holdout, weight_step,
        None if augment is None else added_rows(augment, data, tokenizer, template_of(data, tokenizer)),
    )  # fmt: skip
    if train.dry_run:
        _show_plan(job)
    else:
        _train(run, job)
    return run


def _identity(data: DataConfig, train: TrainConfig, model: ModelConfig) -> dict[str, Any]:
    """Return the settings that identify a run, and the number of processes if there are several."""
    processes = PartialState().num_processes
    return identity(resolved(data, train, model)) | ({"processes": processes} if processes > 1 else {})


def prepare(
    data: DataConfig, model: ModelConfig, objective: Objective
) -> tuple[PreTrainedTokenizerBase, dict[str, Dataset], dict[str, Dataset | None]]:
    """Load the tokenizer, and check and tokenise the rows of every split of the objective.

    Return (tokenizer, tokenised splits, result of `provenance.row_subjects` for each split). Raise DataError,
    ConfigError or MissingFileError, with its name, for an invalid source, row or combination of splits.
    """
    _weights(data, objective)  # refuses weights without effect
    tokenizer = load_tokenizer(model)
    template = template_of(data, tokenizer)
    rows = {}
    with PartialState().main_process_first():  # the others read its tokenised rows from the cache
        for split in objective.splits():
            spec = getattr(data, split)
            rows[split] = load_source(spec, split_name=split, data_path=data.data_path, fields=data.fields)
        if "forget" in rows and "retain" in rows:
            check_overlap(rows["forget"], rows["retain"])
        if objective.needs_alternate():
            rows["alternate"] = with_alternates(rows["forget"], data.alternate, data_path=data.data_path)
        splits = {name: tokenise_dataset(split, tokenizer, template, **_limits(data)) for name, split in rows.items()}
        if "alternate" in splits:
            splits["alternate"] = pair_windows(splits["forget"], splits["alternate"])
        return tokenizer, splits, {name: row_subjects(split) for name, split in rows.items()}


def _limits(data: DataConfig) -> dict[str, Any]:
    return {"max_length": data.max_length, "stride": data.stride, "num_proc": data.data_num_proc}


def template_of(data: DataConfig, tokenizer: PreTrainedTokenizerBase) -> Template:
    """Return the template that converts rows to text, from the settings of a recipe."""
    return template_for(tokenizer, **{key: getattr(data, key) for key in TEMPLATE_KEYS})


def _train(run: Run, job: Job) -> None:
    """Load the model, train it or resume its training, save the trained weights, and mark the run as complete."""
    state = PartialState()
    with run.lock() if state.is_main_process else contextlib.nullcontext():
        _train_locked(run, job, state)


def _train_locked(run: Run, job: Job, state: PartialState) -> None:
    configs = job.data, job.train, job.model
    with state.main_process_first():
        overwrite = job.train.overwrite and state.is_main_process
        Run.start(run.path, job.kind.name, resolved(*configs), _identity(*configs), overwrite)
    if state.is_main_process:
        terms = " + ".join(term.key for term in job.objective.terms)  # e.g. forget/npo + retain/nll
        rows = ", ".join(f"{len(split):,} {name}" for name, split in job.splits.items())
        rows += "" if job.augmentation is None else f"; {job.augmentation.statement()}"
        logger.info("%s: %s on %s, rows: %s", job.kind.name, terms, job.model.model_name_or_path, rows)
    model, base_digest = _load_model(job)
    if job.weight_step is not None:
        _take_weight_step(run, job, model, base_digest)
        return
    calibrated = _calibrated_parts(job)
    job = _with_stored_levels(job, _resumed_provenance(run))
    job = replace(job, objective=_calibrated(job, model))
    lesson = None
    if job.teacher is not None:
        lesson = learn_from_teacher(job, template_of(job.data, job.tokenizer), model, base_digest)
        job = replace(job, teacher=replace(job.teacher, arguments=lesson.arguments))
    trainer = _trainer(run, job, model, base_digest, lesson)
    facts = _provenance(job, base_digest, state.num_processes, model, lesson)
    facts |= {"calibrated": calibrated} if calibrated else {}
    _refuse_changed_inputs(run, facts)
    state.wait_for_everyone()
    if state.is_main_process:
        _write_provenance(run, job, facts)
    began = time.perf_counter()
    trainer.train(resume_from_checkpoint=True)  # from the newest complete checkpoint, if any
    folder = run.adapter if job.model.use_peft else run.model
    trainer.save_model(str(folder))
    state.wait_for_everyone()
    if state.is_main_process:
        calibration = {} if trainer.stop is None else {"calibration": trainer.stop.summary()}
        if trainer.stop is not None:
            logger.info(trainer.stop.statement())
        _finish(
            run, job, folder, time.perf_counter() - began, resumed=trainer.resumed_from is not None,
            steps=trainer.state.global_step, wrapper=type(trainer.model_wrapped).__name__,
            shortcuts=vars(trainer.shortcuts), tokens=_token_cost(job, trainer, lesson), **calibration,
        )  # fmt: skip
    state.wait_for_everyone()


def _take_weight_step(run: Run, job: Job, model: Any, base_digest: str) -> None:
    """Set the adapter by one step in weight space, save it, and finish the run. An interrupted run starts again."""
    assert job.weight_step is not None
    facts = _provenance(job, base_digest, 1, model, None)
    _write_provenance(run, job, facts)
    began = time.perf_counter()
    edit = WeightStep(
        to_device(model), job.training_splits["forget"], job.splits["retain"], job.train.per_device_train_batch_size,
        int(job.tokenizer.pad_token_id),
    )  # fmt: skip
    report = repselect(edit, **job.weight_step)
    name = job.model.model_name_or_path
    save_adapter(model, run.adapter, base_digest=base_digest, base_name=name, effect=effect_of(model))
    logger.info(
        "forget loss %.3f to %.3f nats per token at KL %.3g on retain rows; rank %d loses %.1f %% of the step's norm",
        report["forget_nll"]["before"], report["forget_nll"]["after"], report["kl"], job.model.lora_r,
        100 * report["rank_error"],
    )  # fmt: skip
    _finish(run, job, run.adapter, time.perf_counter() - began, resumed=False, steps=1, weight_step=report)


def _write_provenance(run: Run, job: Job, facts: dict[str, Any]) -> None:
    write_lists(run, facts["data"], job.splits, job.subject_tables)
    formats.write(run.provenance_file, facts, Provenance)


def _finish(
    run: Run, job: Job, folder: Path, seconds: float, *, resumed: bool, tokens: Mapping[str, Any] | None = None,
    **facts: Any,
) -> None:  # fmt: skip
    """Save the tokenizer with the weights, add facts and cost to provenance.json, and mark the run as complete.

    ``tokens`` is the part of the cost that counts tokens, from `_token_cost`.
    """
    if not any(folder.glob("*.safetensors")):
        raise ConfigError(f"'{folder}' contains no weights; with FSDP, set fsdp_state_dict_type to FULL_STATE_DICT")
    job.tokenizer.save_pretrained(folder)
    cost = {"seconds": round(seconds, 1), "peak_memory_gib": peak_memory(), "resumed": resumed, **(tokens or {})}
    formats.update(run.provenance_file, Provenance, cost=cost, **facts)
    run.finish()
    advice = f"; evaluate it with `llm-forget evaluate {run.path}`" if job.kind.forgotten else ""
    share = token_share(cost)
    words = f", with {share:.1%} of the tokens of retraining" if share is not None else ""
    logger.info("wrote %s in %.0f s%s%s", folder, seconds, words, advice)


def _token_cost(job: Job, trainer: UnlearnTrainer, lesson: Lesson | None) -> dict[str, Any]:
    """Return the tokens of a run, its teacher and auxiliary models, and of retraining. Unknown ones are left out."""
    cost: dict[str, Any] = {} if trainer.tokens is None else {"tokens": trainer.tokens}
    if lesson is not None and job.teacher is not None:
        cost["teacher"] = lesson.cost
        if auxiliary := auxiliary_cost(job.teacher.models, job.teacher.missing):
            cost["auxiliary"] = auxiliary
    if isinstance(job.train, UnlearnConfig):
        oracles = oracle_names(job.train.oracle)
        sources = {"oracle": oracles[0] if oracles else None, "target": job.model.model_name_or_path}
        if retraining := retraining_cost(sources, job.splits):
            cost["retraining"] = retraining
    return cost


def _show_plan(job: Job) -> None:
    """Check the rows for evaluation, and print the plan of the job. Load no weights and write no files."""
    data = job.data
    for name, spec in {"holdout": data.holdout, **(data.splits or {})}.items():
        if spec is not None:
            load_source(spec, split_name=name, data_path=data.data_path, fields=data.fields)
    job.objective.layer_index(dry_run.depth(job.model))
    counts = dry_run.batch_counts(job.training_splits, job.train.per_device_train_batch_size)
    memory = dry_run.estimate_memory(
        job.model,
        counts,
        checkpointing=bool(job.train.gradient_checkpointing),
        keeps_logits=job.objective.needs("logits"),
        autocast=bool(job.train.bf16 or job.train.fp16),
    )
    processes = PartialState().num_processes
    if processes > 1:
        memory = dry_run.per_device(memory, job.model, dry_run.launch_config(os.environ), processes)
    sizes = {name: len(rows) for name, rows in job.training_splits.items()}
    objective = {split: [term["name"] for term in terms] for split, terms in job.objective.to_dict().items()}
    if not PartialState().is_main_process:
        return
    teacher = {"teacher": job.teacher.name} if job.teacher else {}
    dry_run.show(counts, sizes, memory, {"model": job.model.model_name_or_path, "objective": objective, **teacher})


def _load_model(job: Job) -> tuple[Any, str]:
    digest = source_digest(job.model.model_name_or_path, job.model.model_revision)
    model = load_base(job.model)
    if job.kind.forgotten:
        disable_dropout_in_model(model)  # policy and reference must agree before the first step
    if job.train.gradient_checkpointing:
        prepare_gradient_checkpointing(model)
    if job.model.use_peft:
        args = job.model if job.weight_step is None else mlp_targets(model, job.model)
        model = attach_adapter(model, args)
    return model, digest


def _trainer(run: Run, job: Job, model: Any, base_digest: str, lesson: Lesson | None) -> UnlearnTrainer:
    args = copy.copy(job.train)
    args.output_dir = str(run.checkpoints)  # where transformers writes checkpoints
    stop = None
    if job.stop_at_holdout:
        stop = TwoSidedStop(job.splits["forget"], *holdout_rows(job.data, job.tokenizer), job.splits.get("retain"))
    trainer = UnlearnTrainer(
        model,
        args,
        splits=job.training_splits if lesson is None else {**job.splits, "forget": lesson.rows},
        teacher=None if lesson is None else lesson.logprobs,
        objective=job.objective,
        processing_class=job.tokenizer,
        gradient=job.gradient,
        max_retain_drop=job.max_retain_drop,
        stop=stop,
        weights=_weights(job.data, job.objective),
        model_digest=base_digest,
        base_name=job.model.model_name_or_path,
        callbacks=[MetricsFile(run.metrics_file)],
    )
    if not args.disable_tqdm:
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(ProgressLine)
    return trainer


def _calibrated_parts(job: Job) -> list[str]:
    """Return the names of the values that levels of holdout rows will decide in a job, for provenance.json."""
    parts = ["the step that is kept"] if job.stop_at_holdout else []
    if job.data.holdout is not None:
        parts += [f"{term.calibrated} of {term.key}" for term in job.objective.uncalibrated()]
        if job.teacher and (name := TEACHERS.get(job.teacher.name).calibrated) and job.teacher.arguments[name] is None:
            parts.append(f"{name} of teacher {job.teacher.name}")
    return parts


def _with_stored_levels(job: Job, before: Mapping[str, Any]) -> Job:
    """Return the job with the calibrated values that an interrupted run recorded, so that all its steps have the same.

    ``before`` is its provenance.json, empty for a new run.
    """
    terms = job.objective.uncalibrated()
    stored = before["objective"][terms[0].split] if before and terms else []
    shares = (term[terms[0].calibrated] for term in stored if term["name"] == terms[0].name)
    if (share := next(shares, None)) is not None:
        job = replace(job, objective=job.objective.at_level(share))
    name = TEACHERS.get(job.teacher.name).calibrated if job.teacher else ""
    if job.teacher and name and job.teacher.arguments[name] is None:
        arguments = {**job.teacher.arguments, name: before.get("teacher", {}).get("arguments", {}).get(name)}
        job = replace(job, teacher=replace(job.teacher, arguments=arguments))
    return job


def _calibrated(job: Job, model: Any) -> Objective:
    """Return the objective of a job. Uncalibrated terms get the level of the target on holdout rows, if any."""
    terms = job.objective.uncalibrated()
    if not terms or job.data.holdout is None:
        return job.objective
    holdout, _ = holdout_rows(job.data, job.tokenizer)
    share = share_of_unknown(forward_of(to_device(model), int(job.tokenizer.pad_token_id)), holdout)
    if PartialState().is_main_process:
        words = ", ".join(f"{term.key}: {term.calibrated} {share:.3g}" for term in terms)
        logger.info("%s, the level of the target's unknown tokens on %d holdout rows", words, len(holdout))
    return job.objective.at_level(share)


def holdout_rows(data: DataConfig, tokenizer: PreTrainedTokenizerBase) -> tuple[Dataset, list[Any]]:
    """Return (sample of the tokenised holdout rows, subject of each row). Without a subject, it is the row's id."""
    with PartialState().main_process_first():
        rows = load_source(data.holdout, split_name="holdout", data_path=data.data_path, fields=data.fields)
        holdout = sample(tokenise_dataset(rows, tokenizer, template_of(data, tokenizer), **_limits(data)))
    table = row_subjects(rows)
    subjects = {} if table is None else dict(zip(table["id"], table["subject"], strict=True))
    return holdout, [subjects.get(i) or i for i in holdout["id"]]


def _weights(data: DataConfig, objective: Objective) -> dict[str, list[float]]:
    """Return the sampling weights of the sources of each streamed split. Raise ConfigError if the first has weights."""
    primary, *streamed = objective.splits()
    if mixture_weights(getattr(data, primary), primary) is not None:
        raise ConfigError(f"{primary}: weights have no effect here, since an epoch passes over every row; remove them")
    stated = {split: mixture_weights(getattr(data, split), split) for split in streamed}
    return {split: weights for split, weights in stated.items() if weights is not None}


def _resumed_provenance(run: Run) -> dict[str, Any]:
    """Return provenance.json of an interrupted run that has a checkpoint; empty for a run that starts from the base."""
    resumes = run.provenance_file.is_file() and any(run.checkpoints.glob("checkpoint-*"))
    return run.provenance if resumes else {}


def _refuse_changed_inputs(run: Run, facts: dict[str, Any]) -> None:
    """Raise ConfigError if base, tokenizer, rows or teacher of an interrupted run have changed.

    Otherwise the run would mix versions, and provenance.json describes only one.
    """
    if not (before := _resumed_provenance(run)):
        return
    changed = [key for key in ("base", "tokenizer") if before[key] != facts[key]]
    changed += ["rows of augment"] if before.get("augmentation") != facts.get("augmentation") else []
    changed += [f"rows of {name}" for name in facts["data"] if before["data"].get(name) != facts["data"][name]]
    teacher = facts.get("teacher", {})
    parts = {key: fact for key, fact in before.get("teacher", {}).items() if key != "cache"}
    changed += [f"{key} of the teacher" for key, fact in parts.items() if teacher.get(key) != fact]
    if changed:
        raise ConfigError(
            f"{', '.join(changed)} changed since run '{run.path}' was interrupted; restore the earlier ones, or "
            "start again with --overwrite true"
        )


def _provenance(job: Job, base_digest: str, processes: int, model: Any, lesson: Lesson | None) -> dict[str, Any]:
    # This function counts two 4-bit weights per byte.
    trainable, whole = PeftModel.get_nb_trainable_parameters(model)
    return {
        "kind": job.kind.name,
        "base": {
            "name": job.model.model_name_or_path,
            "revision": job.model.model_revision,
            "digest": base_digest,
            "parameters": whole - (trainable if job.model.use_peft else 0),
        },
        "trainable_parameters": trainable,
        "tokenizer": json_digest(job.tokenizer.get_vocab()),
        "data": {name: describe(name, rows, job.subject_tables.get(name)) for name, rows in job.splits.items()},
        **({"augmentation": job.augmentation.to_dict()} if job.augmentation else {}),
        "objective": job.objective.to_dict(),
        "gradient": job.gradient.name if job.gradient else "sum",
        **({"teacher": job.teacher.to_dict() | lesson.to_dict()} if job.teacher and lesson else {}),
        "seed": job.train.seed,
        "processes": processes,
        "environment": environment(),
    }
