"""Gradient probe: compute the gradient norms of each answer, one answer at a time."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from llm_forget.core.errors import EvaluationError, NotEnoughMemoryError
from llm_forget.core.ignore_label import IGNORE
from llm_forget.evals.probes.probes import Advance, TokenRow, right_padded
from llm_forget.evals.records import GradientRecord, Key, RecordWriter
from llm_forget.logprobs.logprobs import evaluation_mode, forward_logprobs

NORMS = {"1": 1.0, "2": 2.0, "inf": float("inf")}


def probe_gradients(
    model: nn.Module, rows: Sequence[TokenRow], writer: RecordWriter, *, advance: Advance | None = None
) -> None:
    """Write a `GradientRecord` of each answer, with one backward pass per window.

    The loss is the answer's mean token NLL (nats), over all its windows. Its gradient is taken with respect to the base
    weights only, not to adapters, so that the unlearned model and its target (the model before unlearning) are compared
    on the same weights. With an adapter on, this gradient equals that of the merged model, except for DoRA, which
    rescales weights. A norm (p = 1, 2, inf) is the mean over weight tensors of each tensor's p-norm, as in MIMIR and
    open-unlearning; a tensor without gradient counts as 0. The norms of an answer without target tokens are NaN.

    The longest answers come first. Answers with a record in ``writer`` are skipped. ``grad``, ``requires_grad`` and the
    mode of every module are restored, also after an error. Raises EvaluationError if a base weight is quantised, and
    NotEnoughMemoryError if memory runs out with a single window.
    """
    missing = writer.missing()
    answers: dict[Key, list[TokenRow]] = {}
    for row in rows:
        if row.key in missing:
            answers.setdefault(row.key, []).append(row)
    queue = sorted(answers.items(), key=lambda item: max(len(row.input_ids) for row in item[1]), reverse=True)
    with _differentiating(model) as weights:
        for key, windows in queue:
            writer.append([GradientRecord(*key, _norms(model, windows, weights))])
            if advance is not None:
                advance(1)


def _norms(model: nn.Module, windows: Sequence[TokenRow], weights: Sequence[nn.Parameter]) -> dict[str, float]:
    """Map each p of `NORMS` to the gradient norm of one answer. Every ``grad`` is None before and after the call."""
    total = sum(label != IGNORE for row in windows for label in row.labels[1:])
    if not total:
        return dict.fromkeys(NORMS, float("nan"))
    for row in windows:
        _backward(model, row, total)
    norms = {}
    for name, p in NORMS.items():
        parts = [torch.linalg.vector_norm(w.grad, p, dtype=torch.float32) for w in weights if w.grad is not None]
        norms[name] = sum(torch.stack([part.to(parts[0].device) for part in parts]).tolist()) / len(weights)
    for weight in weights:
        weight.grad = None
    return norms


def _backward(model: Any, row: TokenRow, total: int) -> None:
    """Add the gradient of a window's share of the mean NLL; ``total`` is the number of targets of the whole answer."""
    device = model.get_input_embeddings().weight.device
    inputs = right_padded([row], device)
    if not (inputs["labels"][:, 1:] != IGNORE).any():
        return
    try:
        logps = forward_logprobs(model, inputs, head=model.get_output_embeddings())
        (-logps.values.sum() / total).backward()
    except torch.OutOfMemoryError as error:
        raise NotEnoughMemoryError(
            f"out of memory with the gradient of a single sequence of {len(row.input_ids)} tokens; lower max_length, "
            "or remove the probes of kind gradients"
        ) from error


@contextmanager
def _differentiating(model: nn.Module) -> Iterator[list[nn.Parameter]]:
    """Set evaluation mode, require gradients of the base weights only, and yield them. Restore the model at the end."""
    weights = base_weights(model)
    chosen = {id(weight) for weight in weights}
    before = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    try:
        for parameter, _, _ in before:
            parameter.requires_grad_(id(parameter) in chosen)
            parameter.grad = None
        with evaluation_mode(model), torch.inference_mode(False), torch.enable_grad():
            yield weights
    finally:
        for parameter, flag, gradient in before:
            parameter.requires_grad_(flag)
            parameter.grad = gradient


def base_weights(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters except those of adapters, each tied one once. Raise EvaluationError if one is quantised."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    added = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, BaseTunerLayer)
        for name in module.adapter_layer_names
        for parameter in getattr(module, name).parameters()
    }
    weights = [parameter for parameter in model.parameters() if id(parameter) not in added]
    quantised = [weight for weight in weights if not weight.is_floating_point() or weight.element_size() < 2]
    if quantised:
        raise EvaluationError(
            f"{len(quantised)} of {len(weights)} weights of the model are quantised and have no gradient; load it "
            "without load_in_4bit and load_in_8bit, or remove the probes of kind gradients"
        )
    return weights
