"""lm-eval in this process, on a model as it lies in memory: adapter on or off, nothing reloaded, merged or moved.

Tasks are ours (``eval/lm_eval``, also for the ``lm_eval`` command) or any of lm-eval's own. Only numbers come back: no
sample is kept, and lm-eval's logging, which may quote rows, is off.
"""

from __future__ import annotations

import contextlib
import copy
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate import PartialState

from llm_forget.core.errors import EvaluationError, NotEnoughMemoryError
from llm_forget.core.launch import refuse_processes
from llm_forget.evals.lm_eval.tasks import check_tasks, load_tasks, quiet

RESAMPLES = 1000  # lm-eval bootstraps standard errors that have no formula, such as perplexity's
Z_95 = 1.96
_STDERR = "_stderr"
_REQUESTS = ("loglikelihood", "loglikelihood_rolling", "generate_until")  # what lm-eval asks of a model
ON_CPU = 16  # sequences at most: a CPU out of memory ends the process, so that nothing could be halved
Result = TypeVar("Result")


def run_lm_eval(
    model: Any,
    tokenizer: Any,
    tasks: Sequence[str],
    *,
    num_fewshot: int | None = None,
    limit: int | None = None,
    batch_size: int = 16,
    data_path: Path | None = None,
    seed: int = 0,
    apply_chat_template: bool = False,
    expect: Callable[[int], None] | None = None,
    advance: Callable[[int], None] | None = None,
) -> dict[str, dict[str, Any]]:
    """Numbers of lm-eval tasks; equal to those of the ``lm_eval`` command with the same arguments.

    Args:
        model: a causal language model, with or without PEFT adapters, on its device. Training flags, random states and
            the tokenizer are afterwards what they were.
        tokenizer: of the model.
        tasks: names of tasks, groups or tags.
        num_fewshot: worked examples before each question; default: what the task says. A task that says 0 keeps 0.
        limit: the first so many rows of each task (of a group: of each of its tasks), as lm-eval has it.
        batch_size: sequences at most, 16 at most on a CPU; halved when memory runs out.
        data_path: folder with the data of our tasks; default: the Hub. lm-eval's own tasks always ask the Hub.
        seed: of sampled worked examples and generations.
        apply_chat_template: put the prompts into the tokenizer's chat template.
        expect, advance: progress: called with the number of questions about to be asked, and with those answered.

    Returns:
        By ``task.metric`` (``task.metric,filter`` where lm-eval filters generations): ``value`` (None where it is no
        number), ``stderr`` and ``ci`` (95 %, normal, of means only; both None where lm-eval has none), ``n`` rows,
        ``higher_is_better``. A group has lines of its own beside those of its tasks, their rows together as ``n``.

    Raises:
        ValueError: see `check_tasks`; several processes; a limit or batch size below 1; no chat template to apply.
        FileNotFoundError: ``data_path`` lacks a task's file.
        MemoryError: a single sequence does not fit.
    """
    refuse_processes("lm-eval", PartialState())
    if batch_size < 1 or (limit is not None and limit < 1):
        raise EvaluationError(f"limit and batch_size must be at least 1, not {limit} and {batch_size}")
    if apply_chat_template and not tokenizer.chat_template:
        raise EvaluationError("apply_chat_template is true, but this tokenizer has no chat template; set it to false")
    check_tasks(tasks, data_path)

    def attempt(size: int) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        # Everything anew: a task counts how many worked examples it has drawn.
        with quiet(), _state_restored(model), _seeded(seed):
            loaded = load_tasks(tasks, data_path)
            for task in loaded["tasks"].values():
                _set_fewshot(task, num_fewshot, seed)
            lm = _as_lm(model, tokenizer, size, expect, advance)
            return _evaluated(lm, loaded, limit, apply_chat_template), loaded

    on_cpu = next(model.parameters()).device.type == "cpu"
    return _numbers(*_with_smaller_batches(attempt, min(batch_size, ON_CPU) if on_cpu else batch_size))


def _with_smaller_batches(attempt: Callable[[int], Result], batch_size: int) -> Result:
    """What ``attempt`` gives with the largest batch that memory allows; lm-eval puts the longest batch first."""
    from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

    while True:
        try:
            return attempt(batch_size)
        except RuntimeError as error:
            if not should_reduce_batch_size(error):
                raise
        # Out of the handler, whose traceback would keep the tensors of the failed batch alive.
        clear_device_cache(garbage_collection=True)
        if batch_size == 1:
            raise NotEnoughMemoryError(
                "out of memory in lm-eval with a single sequence; load the model in 4 or 8 bit, or leave the task out"
            )
        batch_size //= 2


def _as_lm(
    model: Any,
    tokenizer: Any,
    batch_size: int,
    expect: Callable[[int], None] | None,
    advance: Callable[[int], None] | None,
) -> Any:
    """The model as lm-eval takes it, telling how far it is."""
    from lm_eval.api.model import CacheHook
    from lm_eval.models.huggingface import HFLM

    # A copy of the tokenizer, since lm-eval gives it a padding token.
    lm: Any = HFLM(pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=batch_size)
    if expect is not None:
        for kind in _REQUESTS:
            setattr(lm, kind, _reporting_requests(getattr(lm, kind), expect))
    if advance is not None:
        hook: Any = CacheHook(None)  # told of every answer, to keep it for another time
        hook.add_partial = lambda *_: advance(1)
        lm.set_cache_hook(hook)
    return lm


def _reporting_requests(ask: Callable[..., Result], expect: Callable[[int], None]) -> Callable[..., Result]:
    def announced(requests: Sequence[Any], *args: Any, **keys: Any) -> Result:
        expect(len(requests))
        return ask(requests, *args, **keys)

    return announced


def _evaluated(lm: Any, loaded: Mapping[str, Any], limit: int | None, apply_chat_template: bool) -> Mapping[str, Any]:
    from lm_eval.evaluator import evaluate

    try:
        results: Mapping[str, Any] = evaluate(
            lm, loaded, limit=limit, bootstrap_iters=RESAMPLES, log_samples=False,
            apply_chat_template=apply_chat_template, fewshot_as_multiturn=apply_chat_template,
        )  # fmt: skip
    except AssertionError:
        # lm-eval's only word on an answer that does not fit.
        raise EvaluationError(
            f"lm-eval cannot score {', '.join(loaded['tasks'])}: a prompt is empty, or an answer is longer than the "
            f"{lm.max_length} tokens the model reads; leave the task out"
        ) from None
    return results


def _set_fewshot(task: Any, num_fewshot: int | None, seed: int) -> None:
    """As ``lm_eval`` does: a task whose definition says 0 (its prompt holds its own examples) keeps 0."""
    default = task.config.num_fewshot
    if default != 0:
        task.set_config("num_fewshot", num_fewshot if num_fewshot is not None else default or 0)
    task.set_fewshot_seed(seed=seed)


def _numbers(results: Mapping[str, Any], loaded: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    from lm_eval.api.metrics import mean

    numbers = {}
    for name, task_results in results["results"].items():
        group = loaded["groups"].get(name)
        leaves = [task.task_name for task in group.get_all_tasks()] if group else [name]
        n = sum(results["n-samples"][leaf]["effective"] for leaf in leaves)
        for key, value in task_results.items():
            metric, comma, filtered = key.partition(",")
            if not comma or metric.endswith(_STDERR):
                continue  # "alias", "name", "sample_len"
            stderr = _finite(task_results.get(f"{metric}{_STDERR},{filtered}"))
            is_mean = all(loaded["tasks"][leaf].aggregation().get(metric) is mean for leaf in leaves)
            complete = _finite(value) is not None and stderr is not None
            ci = (value - Z_95 * stderr, value + Z_95 * stderr) if is_mean and complete else None
            line = f"{name}.{metric}" if filtered == "none" else f"{name}.{metric},{filtered}"
            higher = results["higher_is_better"].get(name, {}).get(metric)
            numbers[line] = {"value": _finite(value), "stderr": stderr, "ci": ci, "n": n, "higher_is_better": higher}
    return numbers


def _finite(value: Any) -> float | None:
    """None for what is no number: lm-eval writes "N/A" where there is no standard error, a broken model gives NaN."""
    return float(value) if isinstance(value, Real) and math.isfinite(value) else None


@contextlib.contextmanager
def _state_restored(model: torch.nn.Module) -> Iterator[None]:
    """Training flags are put back, and weights not tied anew: transformers fails on an adapter on a tied layer."""
    training = {module: module.training for module in model.modules()}
    model.tie_weights = lambda *_, **__: None  # type: ignore[assignment]
    try:
        yield
    finally:
        del model.tie_weights
        for module, flag in training.items():
            module.training = flag


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed everything a task may draw from, and put the states back."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
