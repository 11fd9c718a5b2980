"""Evaluate target, unlearned model and oracle: measure each model once on each split, then compute the metrics.

Under ``accelerate launch``, each process measures a share of the rows, and the main process computes the metrics.
"""

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from trl import ModelConfig

from llm_forget.core import formats
from llm_forget.core.config import SPLITS, DataConfig, UnlearnConfig, keys_of, model_part
from llm_forget.core.digests import json_digest
from llm_forget.core.errors import ConfigError
from llm_forget.core.formats.results import Results, RowScores
from llm_forget.core.registry import did_you_mean
from llm_forget.core.run_directory import ROLES, Run, oracle_names, oracle_role, oracle_roles, refuse_version
from llm_forget.core.run_kinds import kind_of
from llm_forget.core.text import terminal
from llm_forget.core.unsupported_keys import DTYPES
from llm_forget.data.sources import load_source
from llm_forget.data.template import TEMPLATE_KEYS, template_for
from llm_forget.evals.lm_eval.tasks import check_metric, check_tasks
from llm_forget.evals.probes.distributed import from_main_process, start_processes
from llm_forget.evals.probes.inputs import Work, prepare
from llm_forget.evals.probes.vllm import refuse_engine
from llm_forget.evals.results import assemble_results, entries_of_suite, merge_with_earlier
from llm_forget.evals.runner import EvaluatedModel, measure
from llm_forget.evals.suite import Suite, Task, load_suites
from llm_forget.evals.terminal import print_results, print_texts
from llm_forget.models.load import load_tokenizer

DEFAULT_SUITE = "basic"
MAPPINGS = ("splits", "fields", "chat_template_kwargs")
ROW_KEYS = {field.name for field in dataclasses.fields(DataConfig)} | {"dtype", "use_cpu"}  # keys of an evaluation


def evaluate(
    run: str | Path,
    suite: str | Path | Sequence[str | Path] | None = None,
    *,
    target: str | None = None,
    target_revision: str | None = None,
    oracle: str | Sequence[str] | None = None,
    limit: int | None = None,
    batch_size: int = 64,
    show_text: int = 0,
    vllm: bool = False,
    quiet: bool = False,
    keep: bool = True,
    records: str | Path | None = None,
    **overrides: Any,
) -> dict[str, Any]:
    """Evaluate a run with suites, write its records, rows.json and results.json, and print tables and verdicts.

    Args:
        run: a finished run, or any model (Hub id, folder, adapter). For a model, only the cache is written.
        suite: names of shipped suites or YAML files, as a list or comma-separated. Default: the run's, else ``basic``.
        target: the model before unlearning. Default: the model that the run unlearned from.
        target_revision: commit, tag or branch of a ``target`` on the Hub. Default: main.
        oracle: a model that was never trained on the forget rows, or several (a list, or comma-separated). Results then
            state the mean over oracles. Default: the run's ``oracle``; without one, results have no oracle values.
        limit: maximum number of rows of each probe, sampled with a fixed seed.
        batch_size: maximum number of sequences in a batch. It is halved when memory runs out.
        show_text: number of generations of each model to print to the terminal. Results never contain these texts.
        vllm: generate with vLLM, which needs a GPU and the extra ``vllm``.
        quiet: print nothing.
        keep: write results.json and rows.json into the run. Records are written in any case.
        records: folder for the records (with generated texts) of a model that is not a run. Default: the cache.
        overrides: recipe keys that replace those of the run, such as ``data_path``, ``forget``, ``splits``, ``dtype``.

    Returns:
        The content of results.json, the same in all processes. A value is None if it could not be computed. Earlier
        results of other suites for the same models and rows are included.

    Raise MissingPackageError if vLLM is requested but not installed. Raise ConfigError, DataError, EvaluationError or
    ModelError if suites, rows, models and settings do not fit together.
    """
    began = time.perf_counter()
    config, finished = _configuration(run, overrides, writes=keep or records is None)
    suites = _suites(suite or config.get("suite") or DEFAULT_SUITE, config, limit)
    state = start_processes(use_cpu=bool(config.get("use_cpu")))
    _refuse_tasks(suites, state.num_processes)
    models = _evaluated_models(config, finished, target or None, oracle or config.get("oracle"), target_revision)
    _refuse_equal_oracles(models)
    models = _through_vllm(models, state.num_processes) if vllm else models
    tokenizer = _common_tokenizer(models)
    if finished is None:
        _refuse_without_rows(run, suites, config)
    with state.main_process_first():  # it writes the cache that the other processes read
        by_suite = {name: _works(chosen, config, tokenizer) for name, chosen in suites.items()}
    works = {f"{name}/{probe}": work for name, (probes, _) in by_suite.items() for probe, work in probes.items()}
    tasks = {f"{name}/{task.name}": task for name, chosen in suites.items() for task in chosen.tasks}
    _check_tasks(list(tasks.values()), config)
    measurements = measure(
        models, works, tokenizer, device=torch.device("cpu") if config.get("use_cpu") else state.device,
        folder=Path(records) if records is not None else finished.records if finished is not None else None,
        batch_size=batch_size, quiet=quiet, tasks=tasks, data_path=config.get("data_path"),
    )  # fmt: skip
    if not state.is_main_process:
        return from_main_process({})
    # Record the overridden keys and the limit, because they decide which rows were measured.
    settings = {"limit": limit, "overrides": sorted(key for key, value in overrides.items() if value is not None)}
    results, rows = assemble_results(suites, models, works, measurements, settings)
    for name, (_, splits) in by_suite.items():
        results["suites"][name]["splits"] = splits
    results["seconds"] = round(time.perf_counter() - began, 1)
    if finished is not None and keep:
        results, rows = merge_with_earlier(finished, results, rows)
        formats.write(finished.rows_file, rows, RowScores)
        formats.write(finished.results_file, results, Results)
    if not quiet:
        _show(suites, works, measurements, results, tokenizer, show_text)
    return from_main_process(results)


def check_measurable(config: dict[str, Any], suite: str | Sequence[str | Path] | None = None) -> None:
    """Before training, check that the suites can evaluate the run of a recipe. Tokenise all rows, but load no weights.

    Raise ConfigError or EvaluationError for a missing split or column, an unknown suite, or an oracle with another
    vocabulary.
    """
    suites = _suites(suite or config.get("suite") or DEFAULT_SUITE, config)
    tokenizer = _common_tokenizer(_evaluated_models(config, None, None, config.get("oracle"), None))
    for name, chosen in suites.items():
        try:
            _works(chosen, config, tokenizer)
            _check_tasks(chosen.tasks, config)
        except (ValueError, FileNotFoundError) as error:
            raise ConfigError(
                f"nothing was trained, because the run could not be evaluated with suite '{name}': {error}; add the "
                "missing rows, or choose a suite that needs only the rows given, such as basic"
            ) from error


def _check_tasks(tasks: Sequence[Task], config: dict[str, Any]) -> None:
    """Raise an error if an lm-eval task or its metric does not exist."""
    for task in tasks:
        check_tasks([task.task], Path(config["data_path"]) if config.get("data_path") else None)
        check_metric(task.task, task.metric)


def _refuse_without_rows(model: str | Path, suites: dict[str, Suite], config: dict[str, Any]) -> None:
    """Raise ConfigError if the options for a model that is not a run lack a split that a suite needs."""
    for suite in suites.values():
        lacking = [name for name in suite.splits() if _source_of(name, suite, config) is None]
        if lacking:
            options = [f"--{name} ROWS" for name in lacking if name in SPLITS]
            others = ", ".join(f"{name}: ROWS" for name in lacking if name not in SPLITS)
            options += [f"--splits '{{{others}}}'"] if others else []
            raise ConfigError(
                f"suite '{suite.name}' needs the split '{lacking[0]}', and '{model}' is not a run, whose recipe "
                f"would define it; give {' '.join(options)}, and to compare with other models --target MODEL (before "
                "unlearning) and --oracle MODEL (never trained on the forget rows)"
            )


def _refuse_tasks(suites: dict[str, Suite], processes: int) -> None:
    """Raise ConfigError for lm-eval tasks with several processes, because each process would measure every row."""
    for suite in suites.values():
        if suite.tasks and processes > 1:
            raise ConfigError(
                f"suite '{suite.name}' has lm-eval tasks ({suite.tasks[0].task}), which run in one process, not "
                f"{processes}; evaluate it without accelerate launch; its results are added to those of other suites"
            )


def _through_vllm(models: dict[str, EvaluatedModel], processes: int) -> dict[str, EvaluatedModel]:
    """Return the models with vLLM as their engine. Raise an error if vLLM does not support one of them."""
    if processes > 1:
        raise ConfigError("vLLM distributes the work itself; evaluate without accelerate launch, or without vllm")
    for evaluated in models.values():
        refuse_engine(evaluated.model, evaluated.adapter)
    return {role: replace(evaluated, vllm=True) for role, evaluated in models.items()}


def _show(
    suites: dict[str, Suite],
    works: dict[str, Work],
    records: dict[str, dict[str, Any]],
    results: dict[str, Any],
    tokenizer: Any,
    count: int,
) -> None:
    for name in suites:
        print_results(name, results, terminal())
        suite_records = {role: entries_of_suite(name, by_probe) for role, by_probe in records.items()}
        print_texts(_texts(entries_of_suite(name, works), suite_records, tokenizer, count), terminal())


def _configuration(
    run: str | Path, overrides: dict[str, Any], *, writes: bool = True
) -> tuple[dict[str, Any], Run | None]:
    check_keys(overrides)
    keys = {key: value for key, value in overrides.items() if value is not None}
    if not (Path(run) / "run.json").is_file():
        return {"model_name_or_path": str(run), **keys}, None
    finished = Run.open(run)
    if writes:
        refuse_version(finished.path, "records with texts")
    return {**finished.config, **keys}, finished


def check_keys(overrides: dict[str, Any], *, of: str = "evaluate") -> None:
    """Raise ConfigError for keys and values that a recipe does not allow. ``of`` is the command in the message."""
    allowed = keys_of(UnlearnConfig)
    for key, value in overrides.items():
        if key not in allowed:
            raise ConfigError(f"{of} has no key '{key}'; {did_you_mean(key, allowed)}")
        _check_type(key, value)


def _check_type(key: str, value: Any) -> None:
    """Raise ConfigError if the value of a key has the wrong type."""
    if key in MAPPINGS and value is not None and not isinstance(value, dict):
        raise ConfigError(f"'{key}' must be a mapping, as in '{{name: value}}', not '{value}'")
    default = next((f.default for c in (DataConfig, ModelConfig) for f in dataclasses.fields(c) if f.name == key), None)
    if key == "dtype" and value is not None and str(value) not in DTYPES:
        raise ConfigError(f"dtype is '{value}'; allowed: {', '.join(DTYPES)}")
    if value is not None and isinstance(default, bool | int) and type(value) is not type(default):
        raise ConfigError(
            f"'{key}' must be {'true or false' if isinstance(default, bool) else 'a number'}, not '{value}'"
        )


def _evaluated_models(
    config: dict[str, Any], run: Run | None, target: str | None, oracle: Any, target_revision: str | None
) -> dict[str, EvaluatedModel]:
    """Return the models to evaluate by role: ``unlearned``, ``before``, oracles. Roles without a model are left out."""
    model = model_part(config)
    models = {}
    for place, name in enumerate(oracle_names(oracle)):
        role = oracle_role(place)
        models[role] = EvaluatedModel(role, _same_precision(model, name))
    if run is not None and kind_of(run).forgotten and run.adapter.is_dir():
        models["unlearned"] = EvaluatedModel("unlearned", model, run.adapter)
        models["before"] = EvaluatedModel("before", model, run.adapter, adapter_on=False)
    elif run is not None:
        models["unlearned"] = EvaluatedModel("unlearned", _same_precision(model, str(run.path)))
        if kind_of(run).forgotten:
            models["before"] = EvaluatedModel("before", model)
    else:
        models["unlearned"] = EvaluatedModel("unlearned", model)
    if target is not None:
        models["before"] = EvaluatedModel("before", _same_precision(model, target, target_revision))
    return models


def _refuse_equal_oracles(models: dict[str, EvaluatedModel]) -> None:
    """Raise ConfigError if two oracles have the same weights, or if one has the weights of the target."""
    names: dict[str, str] = {}
    for role in oracle_roles(models):
        oracle = models[role]
        if oracle.digest in names:
            raise ConfigError(
                f"oracles '{names[oracle.digest]}' and '{oracle.name}' have the same weights, so their distance says "
                "nothing; name oracles that were trained with different seeds"
            )
        names[oracle.digest] = oracle.name
    if "before" in models and models["before"].digest in names:
        raise ConfigError(
            f"oracle '{names[models['before'].digest]}' has the weights of the target, which was trained on the forget "
            "rows; name a model that was trained without them, or remove the key oracle"
        )


def _same_precision(model: ModelConfig, name: str, revision: str | None = None) -> ModelConfig:
    """Return the configuration of another model with the precision of ``model``."""
    return replace(model, model_name_or_path=name, model_revision=revision or "main")


def _common_tokenizer(models: dict[str, EvaluatedModel]) -> Any:
    """Return the tokenizer of all models. Raise ConfigError if vocabularies differ, because values are per token."""
    tokenizer = load_tokenizer(models["unlearned"].model)
    for role, evaluated in models.items():
        if evaluated.model.model_name_or_path != models["unlearned"].model.model_name_or_path:
            other = load_tokenizer(evaluated.model)
            if _vocabulary(other) != _vocabulary(tokenizer):
                kind = "target" if role == "before" else f"{role.partition('_')[0]} model"
                raise ConfigError(f"the {kind} '{evaluated.name}' has another vocabulary; use one of the same family")
    return tokenizer


def _vocabulary(tokenizer: Any) -> dict[str, int]:
    """Return the id of each token, without the placeholder tokens that GGUF adds."""
    return {word: number for word, number in tokenizer.get_vocab().items() if word != f"[PAD{number}]"}


def _works(suite: Suite, config: dict[str, Any], tokenizer: Any) -> tuple[dict[str, Work], dict[str, str]]:
    """Return (tokenised rows of each probe, digest of each split that the run defines)."""
    template = template_for(tokenizer, **{k: config[k] for k in TEMPLATE_KEYS if config.get(k) is not None})
    length: dict[str, Any] = {"max_length": config.get("max_length"), "stride": config.get("stride") or 0}
    splits = {name: list(_split(name, suite, config)) for name in suite.splits()}
    works = {
        name: prepare(probe, splits[probe.split], tokenizer, template, **length) for name, probe in suite.probes.items()
    }
    run_splits = (name for name in splits if _run_source(name, config) is not None)
    return works, {name: json_digest(splits[name]) for name in run_splits}


def _suites(
    names: str | Path | Sequence[str | Path], config: dict[str, Any], limit: int | None = None
) -> dict[str, Suite]:
    """Load suites by name. Optional probes are left out if neither the run nor the suite defines their split."""
    suites = load_suites(names, limit)
    return {
        name: suite.without(split for split in suite.splits() if _source_of(split, suite, config) is None)
        for name, suite in suites.items()
    }


def _run_source(name: str, config: dict[str, Any]) -> Any:
    """Return the source of a split in the run's configuration, or None if the run does not define the split."""
    source = (config.get("splits") or {}).get(name)
    return (config.get(name) or source) if name in SPLITS else source


def _source_of(name: str, suite: Suite, config: dict[str, Any]) -> Any:
    """Return the source of a split in the run's configuration or, if the run does not define it, in the suite."""
    source = _run_source(name, config)
    return source if source is not None else suite.data.get(name)


def _split(name: str, suite: Suite, config: dict[str, Any]) -> Any:
    """Return the rows of a split. Raise ConfigError if neither the run nor the suite defines the split."""
    source = _source_of(name, suite, config)
    if source is None:
        split_names = sorted(
            {*(config.get("splits") or {}), *suite.data, *(k for k in ("forget", "retain") if config.get(k))}
        )
        raise ConfigError(
            f"suite '{suite.name}' needs the split '{name}', which neither the run nor the suite defines "
            f"({did_you_mean(name, split_names)}); add it to `splits` of the recipe"
        )
    # `fields` renames columns of the user's data; the suite's own data has the right names.
    fields = config.get("fields") if _run_source(name, config) is not None else None
    return load_source(source, split_name=name, data_path=config.get("data_path"), fields=fields)


def _texts(works: dict[str, Work], records: dict[str, Any], tokenizer: Any, count: int) -> list[dict[str, str]]:
    """Return id, prompt, truth and models' texts of ``count`` evenly spaced rows of the first probe that generates."""
    name = next((name for name, work in works.items() if work.prompt_rows), None)
    if not count or name is None:
        return []
    rows = works[name].prompt_rows
    generations = {role: {r.key: r.text for r in records[role][name]} for role in ROLES if role in records}
    return [
        {
            "id": row.id,
            "prompt": tokenizer.decode(row.prompt_ids, skip_special_tokens=True),
            "truth": row.reference,
            **{role: texts[row.key] for role, texts in generations.items()},
        }
        for row in (rows[index] for index in _spread(len(rows), count))
    ]


def _spread(rows: int, count: int) -> list[int]:
    """Return ``count`` evenly spaced indices below ``rows``. Index i is shifted by i, as rows may follow a pattern."""
    return sorted({min(rows - 1, i * rows // count + i) for i in range(count)})
