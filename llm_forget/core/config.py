"""Parse flat YAML recipes and ``--key value`` overrides into `DataConfig`, `TrainConfig` and TRL's ``ModelConfig``."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import yaml
from transformers import TrainingArguments
from trl import ModelConfig, TrlParser

from llm_forget.core.errors import ConfigError, MissingFileError, library_errors
from llm_forget.core.launch import follow_launcher
from llm_forget.core.registry import did_you_mean
from llm_forget.core.run_directory import MEASURED_WITH, oracle_names
from llm_forget.core.unsupported_keys import check_model, check_training

SPLITS = ("forget", "retain", "holdout", "train", "alternate")  # keys of `DataConfig` that name rows
SECRET_KEYS = frozenset({"hub_token"})
# Keys that do not change what a run produces: two runs that differ only in these have the same identity.
CONTROL_KEYS = frozenset(
    {"output_dir", "overwrite", "dry_run", "disable_tqdm", "logging_dir", "run_name", "resume_from_checkpoint"}
    | {"accelerator_config", "log_level", "log_level_replica", "dataloader_num_workers", "ddp_timeout", "report_to"}
    | {"save_total_limit"}
)


if TYPE_CHECKING:
    Structure = Any  # after parsing: a mapping or a list
else:
    Structure = dict | str | None  # HfArgumentParser supports no other type for a mapping


def _field(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass
class DataConfig:
    """Settings that select the rows of each split and tokenise them.

    A split is a path, a Hub name, ``builtin:NAME``, a mapping such as ``{path: rows.jsonl}``, or a list of these.
    """

    forget: Structure = _field(None, "rows to forget")
    retain: Structure = _field(None, "rows to keep")
    train: Structure = _field(None, "rows to train on (finetune only)")
    holdout: Structure = _field(None, "rows of the same distribution that were never trained on")
    alternate: Structure = _field(None, "refusals for idk_dpo; altpo reads the column 'alternate' instead")
    splits: Structure = _field(None, "further named sources for evaluation, e.g. forget_perturbed")
    data_path: str | None = _field(
        None, "folder that replaces the Hub: <data_path>/<name>.jsonl, .json, .csv, .parquet"
    )
    fields: Structure = _field(None, "column names, e.g. {prompt: instruction, completion: output}")
    prompt_template: str = _field("Question: {prompt}\nAnswer: ", "used where the tokenizer has no chat template")
    completion_end: str | None = _field(None, "what ends an answer there; default: the end-of-sequence token")
    chat_template_kwargs: Structure = _field(None, "for the tokenizer's template, e.g. {enable_thinking: false}")
    system_prompt: str | None = _field(None, "system turn put before every row that has none")
    use_chat_template: bool | None = _field(None, "default: whether the tokenizer has one")
    max_length: int = _field(1024, "tokens; longer rows are split into windows, never cut")
    stride: int = _field(128, "tokens of context that a window repeats from the one before")
    data_num_proc: int | None = _field(None, "processes for tokenisation")


@dataclass
class TrainConfig(TrainingArguments):
    """Training settings: transformers' ``TrainingArguments`` with the defaults and further keys of this package."""

    output_dir: str | None = _field(None, "the run directory")
    learning_rate: float = _field(1e-4, "adapters need about ten times what full fine-tuning takes")
    num_train_epochs: float = _field(5.0, "passes over the forget (or train) rows")
    lr_scheduler_type: str = _field("constant_with_warmup", "see transformers")
    logging_steps: float = _field(10, "optimiser steps between two lines of metrics.jsonl")
    save_strategy: str = _field("epoch", "checkpoints to resume from: no | epoch | steps")
    save_total_limit: int | None = _field(2, "checkpoints kept")
    save_only_model: bool = _field(False, "must stay false for a resume to be exact")
    remove_unused_columns: bool = _field(False, "the batch is built by this package")
    logging_nan_inf_filter: bool = _field(False, "a non-finite loss stops the run")
    report_to: str | None = _field("none", "trackers; none by default")
    disable_tqdm: bool | None = _field(None, "no progress bar")
    bf16: bool | None = _field(None, "default: on GPUs that have it")  # type: ignore[assignment]
    overwrite: bool = _field(False, "delete the content of output_dir and start again")
    dry_run: bool = _field(False, "check everything and estimate memory without training")
    given_keys: frozenset[str] = field(default=frozenset(), init=False)  # keys set by the recipe or the command line

    def __post_init__(self) -> None:
        if not self.output_dir:
            raise ConfigError("no output_dir is given; name the run directory, e.g. --output_dir runs/first")
        if self.bf16 is None:
            import torch

            gpu_has_bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
            self.bf16 = gpu_has_bf16 and not self.fp16 and not self.use_cpu
        follow_launcher()
        super().__post_init__()  # type: ignore[no-untyped-call]  # transformers has no types
        if self.n_gpu > 1:
            # If one process sees several GPUs, transformers would wrap the model in DataParallel and normalise each
            # replica by the whole batch. So only one GPU is used; `--accelerate_config ddp` uses all of them.
            self._n_gpu = 1
        check_training(self)


@dataclass
class UnlearnConfig(TrainConfig):
    """Settings of unlearning. ``method`` names a predefined loss. ``objective`` lists the terms of a custom loss."""

    method: str | None = _field(None, "auto, or one of `llm-forget methods`; default: npo, unless objective is given")
    method_args: Structure = _field(None, "overrides of the method, e.g. {beta: 0.5, retain_weight: 2}")
    objective: Structure = _field(None, "terms by split, e.g. {forget: {name: ga}, retain: {name: nll}}")
    augment: Structure = _field(None, "further questions about each forget row, e.g. {reverse: true, paraphrase: 2}")
    teacher: Structure = _field(None, "whom a term distil learns from, e.g. {name: stranger, k: 1}")
    stop_at: str | None = _field(
        None, "holdout | end: the step to keep; default: holdout with a teacher or hinge, and holdout"
    )
    gradient: str | None = _field(None, "sum | pcgrad | gru | sago | sam; default: the method's")
    gradient_args: Structure = _field(None, "parameters of the gradient rule")
    max_retain_drop: float | None = _field(None, "stop when retain rows lose this much log-prob, nats per token")
    oracle: Structure = _field(
        None, "model retrained without the forget rows (a run or a model), for evaluation; or a list of such models"
    )
    suite: str | None = _field(None, "evaluation suites that fit this recipe, several with commas")

    def __post_init__(self) -> None:
        if self.method is None and self.objective is None:
            self.method = "npo"
        super().__post_init__()
        names = oracle_names(self.oracle)
        self.oracle = names[0] if len(names) == 1 else names or None
        if self.stop_at not in (None, "holdout", "end"):
            raise ConfigError(f"stop_at is '{self.stop_at}'; it is holdout or end")
        if self.max_retain_drop is not None and not self.max_retain_drop > 0:
            raise ConfigError(f"max_retain_drop is {self.max_retain_drop}; it must be above 0, in nats per token")


Train = TypeVar("Train", bound=TrainConfig)
Configs = tuple[DataConfig, Train, ModelConfig]

# Fields that hold a mapping or a list; the command line takes them as YAML. They are collected before HfArgumentParser
# sees the classes, because it rewrites their annotations.
STRUCTURED = frozenset(
    f.name
    for c in (DataConfig, UnlearnConfig)
    for f in dataclasses.fields(c)
    if "dict" in str(f.type) or f.type == "Structure"  # types are strings here, because annotations are postponed
)


class _Parser(TrlParser):
    """A TrlParser that raises ConfigError instead of printing its usage and exiting."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


def keys_of(train_class: type[TrainConfig]) -> set[str]:
    """Return all keys that a recipe for ``train_class`` may have."""
    return {f.name for cls in (DataConfig, train_class, ModelConfig) for f in dataclasses.fields(cls) if f.init}


def load_yaml(path: str | Path) -> dict[str, Any]:
    """Return the keys and values of a recipe. Raise ConfigError for invalid YAML, a repeated key or a YAML alias."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise MissingFileError(f"recipe '{path}' does not exist; see `llm-forget recipes list`") from None
    try:
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
            raise ConfigError(f"recipe '{path}' uses a YAML alias; write the value out")
        _refuse_repeated_keys(yaml.compose(text), path)
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        line = getattr(getattr(error, "problem_mark", None), "line", None)
        where = f" (line {line + 1})" if line is not None else ""
        raise ConfigError(f"recipe '{path}' is not valid YAML{where}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"recipe '{path}' must be a mapping of keys to values")
    return content


def _refuse_repeated_keys(node: Any, path: str | Path) -> None:
    if isinstance(node, yaml.MappingNode):
        keys: set[str] = set()
        for key, value in node.value:
            if key.value in keys:
                raise ConfigError(f"recipe '{path}' line {key.start_mark.line + 1}: key '{key.value}' is given twice")
            keys.add(key.value)
            _refuse_repeated_keys(value, path)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _refuse_repeated_keys(item, path)


def parse(argv: Sequence[str], train_class: type[Train]) -> Configs[Train]:
    """Return the (data, training, model) configuration of ``RECIPE.yaml --key value --key.inner value``.

    Options replace keys of the recipe, which may also be given as ``--config RECIPE.yaml``. Raise ConfigError for
    unknown keys and wrong types.
    """
    argv = list(argv)
    recipe: dict[str, Any] = {}
    if "--config" in argv:
        place = argv.index("--config")
        recipe = load_yaml(argv[place + 1]) if place + 1 < len(argv) else {}
        del argv[place : place + 2]
    elif argv and not argv[0].startswith("-"):
        recipe = load_yaml(argv.pop(0))
    return from_keys(recipe, train_class, overrides=argv)


def from_keys(keys: dict[str, Any], train_class: type[Train], *, overrides: Sequence[str] = ()) -> Configs[Train]:
    """Return the (data, training, model) configuration of recipe keys and of the options that replace some of them.

    Raise ConfigError for unknown keys and wrong types.
    """
    allowed = keys_of(train_class)
    keys = {key: _without_paths(value) for key, value in keys.items()}
    flags = _apply_dotted(keys, overrides, allowed)
    for key in keys:
        if key not in allowed and key in keys_of(UnlearnConfig):
            raise ConfigError(f"key '{key}' belongs to unlearn, not to finetune")
        if key not in allowed:
            raise ConfigError(f"unknown key '{key}'; {did_you_mean(str(key), allowed)}")
    classes: Any = [DataConfig, train_class, ModelConfig]
    parser = _Parser(classes, allow_abbrev=False)
    if issubclass(train_class, UnlearnConfig):
        # An unlearning run trains an adapter by default; without dropout, policy and reference start equal.
        parser.set_defaults_with_config(use_peft=True, lora_dropout=0.0)
    # An explicit null means "the default", like a key that is left out.
    defaults = {k: _as_text(k, v, classes) for k, v in keys.items() if v is not None}
    with library_errors(ConfigError, ValueError, ImportError):
        parser.set_defaults_with_config(**defaults)
        data, train, model = parser.parse_args_into_dataclasses(args=flags)
    for config in (data, train, model):
        _read_structures(config)
    train.given_keys = frozenset(defaults) | {_option(flag) for flag in flags if flag.startswith("--")}
    if not model.model_name_or_path:
        raise ConfigError("no model_name_or_path is given; name a Hub model, a folder, a .gguf file or builtin:NAME")
    check_model(model)
    return data, train, model


def _option(flag: str) -> str:
    return flag[2:].partition("=")[0].replace("-", "_")


def _without_paths(value: Any) -> Any:
    """Return a value with each `Path` in it converted to text, so that the configuration can be written as YAML."""
    if isinstance(value, dict):
        return {key: _without_paths(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_paths(inner) for inner in value]
    return str(value) if isinstance(value, Path) else value


def _as_text(key: str, value: Any, classes: Sequence[type]) -> Any:
    """Return a value as command-line text, so that the parser checks its type. Keep the mappings and lists of keys
    that allow them; raise ConfigError for other keys.
    """
    if isinstance(value, dict | list):
        kinds = " ".join(str(base.__annotations__.get(key, "")) for cls in classes for base in cls.__mro__[:-1])
        if key in STRUCTURED or "dict" in kinds or "list" in kinds:
            return value
        raise ConfigError(f"'{key}' is one value, not a {'mapping' if isinstance(value, dict) else 'list'}")
    return value if value is None else str(value)


def _apply_dotted(keys: dict[str, Any], overrides: Sequence[str], allowed: set[str]) -> list[str]:
    """Store each option ``--a.b value`` in ``keys``, and return the words of all other options for the parser.

    Raise ConfigError for unknown options.
    """
    plain: list[str] = []
    items = list(overrides)
    while items:
        item = items.pop(0)
        if not item.startswith("--"):
            plain.append(item)
            continue
        name, equals, value = item[2:].partition("=")
        first, *rest = name.replace("-", "_").split(".")
        if first not in allowed and first.removeprefix("no_") not in allowed:
            raise ConfigError(f"unknown option '--{name}'; {did_you_mean(first, allowed)}")
        if not rest:
            plain.append(item)
            continue
        if not equals:
            if not items:
                raise ConfigError(f"option '--{name}' needs a value")
            value = items.pop(0)
        inner = keys.get(first)
        inner = dict(inner) if isinstance(inner, dict) else {}
        keys[first] = _with(inner, rest, yaml.safe_load(value))
    return plain


def _with(mapping: dict[str, Any], path: list[str], value: Any) -> dict[str, Any]:
    head, *rest = path
    if rest:
        inner = mapping.get(head)
        value = _with(dict(inner) if isinstance(inner, dict) else {}, rest, value)
    return {**mapping, head: value}


def _read_structures(config: Any) -> None:
    """Parse each mapping or list that a field of the configuration holds as YAML text, and store it in the field."""
    for f in dataclasses.fields(config):
        value = getattr(config, f.name, None)
        if f.name in STRUCTURED and isinstance(value, str) and value.startswith(("{", "[")):
            try:
                setattr(config, f.name, yaml.safe_load(value))
            except yaml.YAMLError as error:
                raise ConfigError(f"the value of '{f.name}' is not a valid mapping or list") from error


def resolved(*configs: Any) -> dict[str, Any]:
    """Return the recipe keys that reproduce these configurations, without secrets and unchanged library defaults."""
    library = {**dataclasses.asdict(ModelConfig()), **_library_defaults()}
    ours = {*DataConfig.__annotations__, *TrainConfig.__annotations__, *UnlearnConfig.__annotations__}
    always = (ours | {"use_peft", "lora_dropout"}) - CONTROL_KEYS | {"output_dir"}
    flat: dict[str, Any] = {}
    for config in configs:
        plain = config.to_dict() if isinstance(config, TrainingArguments) else dataclasses.asdict(config)
        for key, value in plain.items():
            if value is None or key in SECRET_KEYS or (key in CONTROL_KEYS and key not in always):
                continue
            if key in always or value != library.get(key):
                flat[key] = value
    return flat


@functools.cache
def _library_defaults() -> dict[str, Any]:
    # Do not call TrainingArguments(), because it would initialise devices.
    defaults = {f.name: f.default for f in dataclasses.fields(TrainingArguments) if f.init}
    lists: dict[str, Any] = {"debug": [], "include_for_metrics": []}
    return {**defaults, **lists, "activation_checkpointing": False, "gradient_checkpointing": False}


def model_part(keys: dict[str, Any]) -> ModelConfig:
    """Return the model settings among the keys that `resolved` returned."""
    fields = {f.name for f in dataclasses.fields(ModelConfig)}
    return ModelConfig(**{key: value for key, value in keys.items() if key in fields})


def identity(keys: dict[str, Any]) -> dict[str, Any]:
    """Return those keys from `resolved` that affect the result of a run. A run resumes only if they are equal."""
    return {k: v for k, v in keys.items() if k not in CONTROL_KEYS | MEASURED_WITH}
