"""Sum forget and retain gradients separately over the micro-batches of a step, and combine them by a gradient rule.

This module computes gradients with `torch.autograd.grad`, and sums them over processes without DDP. Every process
needs all parameters, so FSDP and ZeRO are not supported.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from llm_forget.core.errors import ConfigError
from llm_forget.core.registry import did_you_mean
from llm_forget.objectives.gradient_rules import RULES, Gradient, combine, perturbation, perturbed

SIDES = ("forget", "retain")
STATE = "gradient_state.safetensors"
Losses = Callable[[Any], dict[str, Tensor]]


class GradientCombiner:
    """The gradients of one step, and the rule that combines them: one of `RULES`, ``module:function`` or ``sam``.

    Rule ``sam`` computes the forget gradient at perturbed weights. Raise ConfigError for an unknown rule or argument.
    """

    def __init__(self, name: str, arguments: dict[str, Any] | None = None) -> None:
        self.name, self.arguments = name, dict(arguments or {})
        if name == "sam":
            unknown = self.arguments.keys() - {"rho"}
            if unknown:
                raise ConfigError(
                    f"gradient rule 'sam' has no parameter '{unknown.pop()}'; {did_you_mean('', ['rho'])}"
                )
        elif name not in RULES.names() and ":" not in name:
            raise ConfigError(f"no gradient rule is called '{name}'; {did_you_mean(name, [*RULES.names(), 'sam'])}")
        else:
            RULES.get(name).arguments(self.arguments)
        self.state: Gradient | None = None
        self._sums: dict[str, Gradient] = {}
        self._batches: list[Any] = []

    def add(self, model: nn.Module, batch: Any, losses: Losses) -> Tensor:
        """Add the gradients of one micro-batch to the sums of the step, and return the loss of the micro-batch."""
        sides = losses(batch)
        parameters = _trainable(model)
        for index, (side, loss) in enumerate(sides.items()):
            gradient = _gradient(loss, parameters, keep_graph=index + 1 < len(sides))
            self._sums[side] = _plus(self._sums.get(side), gradient)
        if self.name == "sam":
            self._batches.append(batch)
        return torch.stack([loss.detach() for loss in sides.values()]).sum()

    def apply(self, model: nn.Module, losses: Losses, accelerator: Any) -> None:
        """Sum the gradients over processes, combine them, and store the result in ``.grad`` for the optimiser."""
        parameters = _trainable(model)
        zeros = [torch.zeros_like(p) for p in parameters]
        forget, retain = (_reduced(self._sums.get(side, zeros), accelerator) for side in SIDES)
        if self.name == "sam":
            forget = self._forget_nearby(parameters, forget, losses, accelerator)
            combined, self.state = combine("sum", forget, retain)
        else:
            # A state loaded from a checkpoint is on the CPU.
            state = None if self.state is None else [s.to(r.device) for s, r in zip(self.state, retain, strict=True)]
            combined, self.state = combine(self.name, forget, retain, state, self.arguments)
        for parameter, gradient in zip(parameters, combined, strict=True):
            parameter.grad = gradient
        self._sums, self._batches = {}, []

    def _forget_nearby(self, parameters: list[Tensor], forget: Gradient, losses: Losses, accelerator: Any) -> Gradient:
        with perturbed(parameters, perturbation(forget, **self.arguments)):
            total: Gradient | None = None
            for batch in self._batches:
                total = _plus(total, _gradient(losses(batch)["forget"], parameters, keep_graph=False))
        return _reduced(total or forget, accelerator)

    def save(self, folder: Path) -> None:
        """Write the state of the gradient rule into a checkpoint folder, if the rule has a state."""
        if self.state is not None:
            save_file({str(index): tensor.contiguous() for index, tensor in enumerate(self.state)}, folder / STATE)

    def load(self, folder: Path) -> None:
        """Read the state that `save` wrote, if the folder contains one."""
        if (folder / STATE).is_file():
            tensors = load_file(folder / STATE)
            self.state = [tensors[str(index)] for index in range(len(tensors))]


def _trainable(model: nn.Module) -> list[Tensor]:
    return [p for p in model.parameters() if p.requires_grad]


def _gradient(loss: Tensor, parameters: list[Tensor], *, keep_graph: bool) -> Gradient:
    gradients = torch.autograd.grad(loss, parameters, retain_graph=keep_graph, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients, strict=True)]


def _plus(total: Gradient | None, gradient: Gradient) -> Gradient:
    return gradient if total is None else [a + b for a, b in zip(total, gradient, strict=True)]


def _reduced(gradient: Gradient, accelerator: Any) -> Gradient:
    """Return the sum of a gradient over all processes, computed in one operation on a flat vector."""
    if accelerator.num_processes == 1:
        return gradient
    flat = accelerator.reduce(torch.cat([g.flatten() for g in gradient]), "sum")
    sizes = [math.prod(g.shape) for g in gradient]
    return [part.view_as(g) for part, g in zip(flat.split(sizes), gradient, strict=True)]
