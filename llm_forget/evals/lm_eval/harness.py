"""Run lm-eval in this process on a model in memory, with its adapter on or off.

Only numbers are returned. No sample is stored, and the logging of lm-eval, which may quote rows, is off.
"""

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
from llm_forget.evals.probes.probes import fits
from llm_forget.logprobs.logprobs import evaluation_mode

RESAMPLES = 1000  # for standard errors that have no formula, such as that of perplexity
Z_95 = 1.96
_STDERR = "_stderr"
_REQUESTS = ("loglikelihood", "loglikelihood_rolling", "generate_until")  # request types of lm-eval
ON_CPU = 16  # maximum batch size on a CPU: running out of memory there kills the process, so no retry is possible
Result = TypeVar("Result")
Callback = Callable[[int], None] | None


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
    expect: Callback = None,
    advance: Callback = None,
) -> dict[str, dict[str, Any]]:
    """Evaluate lm-eval tasks. The numbers equal those of the command ``lm_eval`` with the same arguments.

    Args:
        model: a causal LM with or without adapters; training flags and random states are restored afterwards.
        tasks: names of tasks, groups or tags.
        num_fewshot: number of worked examples before each question; default: that of the task. A task with 0 keeps 0.
        limit: number of rows to use of each task, from its start, as in lm-eval.
        batch_size: batch size, lowered to 16 on a CPU and halved if memory runs out.
        data_path: folder with the data of our tasks; default: the Hub. Tasks of lm-eval always use the Hub.
        seed: seed of sampled worked examples and generations.
        expect, advance: functions for a progress bar. ``expect`` is called with the number of requests to come,
            ``advance`` with 1 for each answer.

    Returns:
        A dict for each ``task.metric`` (``task.metric,filter`` if lm-eval filters generations). Its keys are ``value``
        (None if not finite), ``stderr``, ``ci`` (95 %, normal; None unless the value is a mean with a standard error),
        ``n`` (number of rows) and ``higher_is_better``. A group of tasks has its own entry; its ``n`` is the sum over
        its tasks.

    Raises the errors of `check_tasks`; EvaluationError for several processes, a limit or batch size below 1, or a
    missing chat template; and NotEnoughMemoryError if memory runs out even with a single sequence.
    """
    refuse_processes("lm-eval", PartialState())
    if batch_size < 1 or (limit is not None and limit < 1):
        raise EvaluationError(f"limit and batch_size must be at least 1, not {limit} and {batch_size}")
    if apply_chat_template and not tokenizer.chat_template:
        raise EvaluationError("apply_chat_template is true, but this tokenizer has no chat template; set it to false")
    check_tasks(tasks, data_path)

    def attempt(size: int) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        # Reload the tasks for every attempt: a task keeps count of the worked examples that it has drawn.
        with quiet(), _state_restored(model), _seeded(seed):
            loaded = load_tasks(tasks, data_path)
            for task in loaded["tasks"].values():
                _set_fewshot(task, num_fewshot, seed)
            lm = _as_lm(model, tokenizer, size, expect, advance)
            return _evaluated(lm, loaded, limit, apply_chat_template), loaded

    on_cpu = next(model.parameters()).device.type == "cpu"
    return _numbers(*_with_smaller_batches(attempt, min(batch_size, ON_CPU) if on_cpu else batch_size))


def _with_smaller_batches(attempt: Callable[[int], Result], batch_size: int) -> Result:
    """Return ``attempt(batch_size)``. If memory runs out, halve the batch size; raise NotEnoughMemoryError below 1."""
    results: list[Result] = []
    while not fits(lambda size: results.append(attempt(size)), batch_size):
        if batch_size == 1:
            raise NotEnoughMemoryError(
                "out of memory in lm-eval with one sequence; load in 4 or 8 bit, or remove the task"
            )
        batch_size //= 2
    return results[0]


def _as_lm(model: Any, tokenizer: Any, batch_size: int, expect: Callback, advance: Callback) -> Any:
    """Wrap the model for lm-eval, which then calls ``expect`` and ``advance`` (see `run_lm_eval`)."""
    from lm_eval.api.model import CacheHook
    from lm_eval.models.huggingface import HFLM

    # A copy of the tokenizer, because lm-eval adds a padding token.
    lm: Any = HFLM(pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=batch_size)
    if expect is not None:
        for kind in _REQUESTS:
            setattr(lm, kind, _reporting_requests(getattr(lm, kind), expect))
    if advance is not None:
        hook: Any = CacheHook(None)  # lm-eval calls add_partial for every answer
        hook.add_partial = lambda *_: advance(1)
        lm.set_cache_hook(hook)
    return lm


def _reporting_requests(ask: Callable[..., Result], expect: Callable[[int], None]) -> Callable[..., Result]:
    def reporting(requests: Sequence[Any], *args: Any, **keys: Any) -> Result:
        expect(len(requests))
        return ask(requests, *args, **keys)

    return reporting


def _evaluated(lm: Any, loaded: Mapping[str, Any], limit: int | None, apply_chat_template: bool) -> Mapping[str, Any]:
    from lm_eval.evaluator import evaluate

    try:
        results: Mapping[str, Any] = evaluate(
            lm, loaded, limit=limit, bootstrap_iters=RESAMPLES, log_samples=False,
            apply_chat_template=apply_chat_template, fewshot_as_multiturn=apply_chat_template,
        )  # fmt: skip
    except AssertionError:
        # lm-eval raises an AssertionError without text if an answer is too long for the model.
        raise EvaluationError(
            f"lm-eval cannot score {', '.join(loaded['tasks'])}: a prompt is empty, or an answer is longer than the "
            f"{lm.max_length} tokens the model reads; remove the task"
        ) from None
    return results


def _set_fewshot(task: Any, num_fewshot: int | None, seed: int) -> None:
    """Set the number of worked examples in the way that ``lm_eval`` does.

    A task that sets 0 keeps 0, because its prompts already contain examples.
    """
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
            finite_mean = is_mean and _finite(value) is not None
            ci = (value - Z_95 * stderr, value + Z_95 * stderr) if finite_mean and stderr is not None else None
            line = f"{name}.{metric}" if filtered == "none" else f"{name}.{metric},{filtered}"
            higher = results["higher_is_better"].get(name, {}).get(metric)
            numbers[line] = {"value": _finite(value), "stderr": stderr, "ci": ci, "n": n, "higher_is_better": higher}
    return numbers


def _finite(value: Any) -> float | None:
    """Return ``value`` as a float, or None if it is not a finite number, such as NaN or the "N/A" of lm-eval."""
    return float(value) if isinstance(value, Real) and math.isfinite(value) else None


@contextlib.contextmanager
def _state_restored(model: torch.nn.Module) -> Iterator[None]:
    """Disable weight tying, which fails if a tied layer has an adapter. Restore it and training flags at the end."""
    model.tie_weights = lambda *_, **__: None  # type: ignore[assignment]
    try:
        with evaluation_mode(model):
            yield
    finally:
        del model.tie_weights


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the random states that a task may use, and restore the earlier states at the end of the block."""
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
