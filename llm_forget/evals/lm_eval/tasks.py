"""Check and load tasks, those of lm-eval and ours (``eval/lm_eval``), and compute the keys of their results."""

import contextlib
import functools
import importlib.util
import io
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from llm_forget.core import resources
from llm_forget.core.digests import content_key, file_digest
from llm_forget.core.errors import EvaluationError
from llm_forget.core.registry import did_you_mean


def check_tasks(tasks: Sequence[str], data_path: Path | None = None) -> None:
    """Check that tasks exist and have their data files. Call this before a model is loaded.

    Raises EvaluationError if a task is unknown, or if it needs a local file and ``data_path`` is None. Raises
    FileNotFoundError if ``data_path`` lacks the file of a task.
    """
    for task in tasks:
        entry = _entry(task)
        if task in _ours():
            _data_files(entry, data_path)


def check_metric(task: str, metric: str) -> None:
    """Raise EvaluationError if the task is unknown or its configuration does not list the metric (such as ``acc``)."""
    content = _entry(task).cfg or {}
    listed = content.get("metric_list") or content.get("aggregate_metric_list") or []
    metrics = [str(entry["metric"]) for entry in listed]
    if metrics and metric.partition(",")[0] not in metrics:
        raise EvaluationError(f"lm-eval task '{task}' has no metric '{metric}'; {did_you_mean(metric, metrics)}")


def task_key(
    task: str,
    *,
    num_fewshot: int | None = None,
    limit: int | None = None,
    data_path: Path | None = None,
    seed: int = 0,
    apply_chat_template: bool = False,
) -> str:
    """Return a digest of a task and its settings. Together with the digest of a model, it identifies a result.

    The key covers the version of lm-eval. For our tasks, it also covers the definition, the code and local data. Data
    on the Hub is assumed not to change. Raises the errors of `check_tasks`.
    """
    import lm_eval

    check_tasks([task], data_path)
    entry, ours = _entry(task), task in _ours()
    return content_key(
        task=task,
        # A function's name contains the path of its file, which differs between machines.
        definition=_without_folder(_definitions(entry)) if ours else None,
        code=file_digest(task_folder() / "sources.py") if ours else None,
        data=[file_digest(path) for path in _data_files(entry, data_path)] if ours else None,
        asked={"num_fewshot": num_fewshot, "limit": limit, "seed": seed, "chat": apply_chat_template},
        lm_eval=lm_eval.__version__,
    )


def task_folder() -> Path:
    """Return the folder of our tasks, which the command ``lm_eval`` accepts as ``--include_path``."""
    return resources.folder("eval") / "lm_eval"


def load_tasks(tasks: Sequence[str], data_path: Path | None) -> dict[str, Any]:
    """Load tasks and groups. Return lm-eval's objects by name, under the keys ``tasks`` and ``groups``.

    Only our tasks get the data path, because some tasks of lm-eval do not accept it. Raises the errors of
    `check_tasks`, and EvaluationError if two of ``tasks`` contain the same task.
    """
    from lm_eval.tasks import TaskManager

    metadata = {"data_path": str(data_path)} if data_path is not None else None
    manager = TaskManager(include_path=task_folder(), include_defaults=False, metadata=metadata)
    ours = manager.load([task for task in tasks if task in _ours()])
    foreign = [task for task in tasks if task not in _ours()]
    theirs = _their_manager().load(foreign) if foreign else {"tasks": {}, "groups": {}}
    return {key: {**ours[key], **theirs[key]} for key in ("tasks", "groups")}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence lm-eval, because its warnings may quote a row, and make it compute bootstraps in this process."""
    logger, before = logging.getLogger("lm_eval"), os.environ.get("DISABLE_MULTIPROC")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    os.environ["DISABLE_MULTIPROC"] = "1"
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
        del os.environ["DISABLE_MULTIPROC"]
        if before is not None:
            os.environ["DISABLE_MULTIPROC"] = before


@functools.cache
def _ours() -> Mapping[str, Any]:
    """Return our tasks by name."""
    from lm_eval.tasks import TaskManager

    with quiet():
        index: Mapping[str, Any] = TaskManager(include_path=task_folder(), include_defaults=False).task_index
    return index


@functools.cache
def _their_manager() -> Any:
    """Return the manager of lm-eval's 14,000 tasks. It is created when it is first needed, which takes seconds."""
    from lm_eval.tasks import TaskManager

    with quiet():
        return TaskManager()


def _entry(task: str) -> Any:
    if task in _ours():
        return _ours()[task]
    theirs: Mapping[str, Any] = _their_manager().task_index
    if task in theirs:
        return theirs[task]
    # Suggest one of our names if any is similar: among lm-eval's 14,000 names one is always similar.
    near = did_you_mean(task, _ours())
    near = near if near.startswith("did you mean") else did_you_mean(task, theirs)
    raise EvaluationError(f"no lm-eval task is called '{task}'; {near}")


def _data_files(entry: Any, data_path: Path | None) -> list[Path]:
    """Return the files in ``data_path`` that one of our tasks or groups reads; an empty list if it reads the Hub."""
    if "group" in entry.cfg:
        return [path for task in entry.cfg["task"] for path in _data_files(_ours()[task], data_path)]
    metadata = entry.cfg["metadata"]
    names = [metadata.get("file") or metadata["name"], metadata.get("fewshot")]
    if data_path is not None:
        return [_sources().find(data_path, name) for name in names if name]
    if "hub" not in metadata:
        raise EvaluationError(f"lm-eval task '{entry.name}' reads your {names[0]}.jsonl; name its folder as data_path")
    return []


def _definitions(entry: Any) -> list[Any]:
    """Return the configuration of a task; for a group, its configuration and those of its tasks."""
    tasks = entry.cfg["task"] if "group" in entry.cfg else []
    return [entry.cfg, *(_ours()[task].cfg for task in tasks)]


def _without_folder(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _without_folder(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_without_folder(value) for value in content]
    return content.replace(str(task_folder().resolve()), "") if isinstance(content, str) else content


@functools.cache
def _sources() -> ModuleType:
    """Import the code of our tasks from their folder, where ``lm_eval`` needs it. It is not part of the package."""
    spec = importlib.util.spec_from_file_location("llm_forget_lm_eval_sources", task_folder() / "sources.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
