"""Combine the gradients of the forget terms and of the retain terms, in pure functions on lists of tensors.

A gradient is a list with one tensor per parameter. A rule takes the two gradients, already weighted, averaged over the
whole optimiser step and reduced over ranks, and returns the gradient to descend. Norms and angles treat the whole list
as one vector, in float32.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from llm_forget.core.registry import Entry, Registry

Gradient = list[Tensor]

RULES = Registry("gradient rule", Entry)
rule = RULES.register


@rule()
def sum(forget: Gradient, retain: Gradient) -> Gradient:
    """Add the two gradients, which gives the gradient of the summed loss."""
    return [f + r for f, r in zip(forget, retain, strict=True)]


@rule(paper="arXiv:2001.06782")
def pcgrad(forget: Gradient, retain: Gradient, *, both: bool = False) -> Gradient:
    """Drop the part of the forget gradient that opposes the retain gradient, then add the two.

    Retention comes first, as in arXiv:2604.14808. ``both`` drops the opposing part of the retain gradient too, which is
    PCGrad for equal tasks. Without conflict this is `sum`; exactly opposed gradients leave the retain gradient.
    """
    retained = without_conflict(retain, forget) if both else retain
    return sum(without_conflict(forget, retain), retained)


@rule(paper="arXiv:2503.09117")
def gru(
    forget: Gradient, retain: Gradient, average: Gradient | None, *, gamma: float = 0.8
) -> tuple[Gradient, Gradient]:
    """Drop the part of the forget gradient that opposes a running average of the retain gradient, and descend the rest.

    The retain gradient is only a constraint, and is never descended. ``average`` is the state, None before the first
    step; it becomes ``gamma retain + (1 - gamma) average``. Only its direction matters, not its length.

    Returns:
        The gradient and the new average. ``gamma = 1`` uses only the current retain gradient.
    """
    if average is None:
        average = [torch.zeros_like(r) for r in retain]
    average = [gamma * r + (1 - gamma) * a for r, a in zip(retain, average, strict=True)]
    return without_conflict(forget, average), average


@rule(paper="arXiv:2604.14808")
def sago(forget: Gradient, retain: Gradient) -> Gradient:
    """Take, in each coordinate, the retain gradient if the signs oppose, else the forget gradient (also if one is 0).

    The inner product with the retain gradient is never negative.
    """
    return [torch.where(f.sign() * r.sign() < 0, r, f) for f, r in zip(forget, retain, strict=True)]


def combine(
    name: str,
    forget: Gradient,
    retain: Gradient,
    state: Gradient | None = None,
    arguments: dict[str, Any] | None = None,
) -> tuple[Gradient, Gradient | None]:
    """Apply the rule ``name`` (of `RULES`, or ``module:function``); ``state`` is what the last step returned.

    Returns:
        The gradient to descend, and the state for the next step (None for rules without one).

    Raises:
        ConfigError: no such rule or argument.
    """
    entry = RULES.get(name)
    function = entry.bind(**(arguments or {}))
    if len(entry.inputs) == 2:
        return function(forget, retain), None
    gradient, new_state = function(forget, retain, state)
    return gradient, new_state


def dot(left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    """Return the inner product of two gradients as whole vectors, scalar, float32."""
    products = [(a.float() * b.float()).sum() for a, b in zip(left, right, strict=True)]
    return torch.stack([p.to(products[0].device) for p in products]).sum()


def without_conflict(gradient: Gradient, guard: Gradient) -> Gradient:
    """Return ``gradient`` minus its component along ``guard`` if their inner product is negative, else unchanged."""
    inner = dot(gradient, guard)
    scale = inner.clamp(max=0) / dot(guard, guard).clamp(min=torch.finfo(torch.float32).tiny)
    return [g - (scale.to(h.device) * h).to(g.dtype) for g, h in zip(gradient, guard, strict=True)]


def perturbation(gradient: Gradient, rho: float = 0.01) -> Gradient:
    """Return SAM's step to the highest loss nearby: ``rho g / |g|``, zeros for a zero gradient (arXiv:2502.05374).

    For unlearning, g is the gradient of the forget terms, and only they are evaluated again at the perturbed weights.
    """
    norm = dot(gradient, gradient).sqrt()
    scale = torch.where(norm > 0, rho / norm, torch.zeros_like(norm))
    return [(scale.to(g.device) * g).to(g.dtype) for g in gradient]


@contextmanager
def perturbed(parameters: Sequence[Tensor], step: Sequence[Tensor]) -> Iterator[None]:
    """Move the parameters by ``step`` inside the block; restore them bit for bit on exit, also after an error."""
    saved = [p.detach().clone() for p in parameters]
    try:
        with torch.no_grad():
            for p, s in zip(parameters, step, strict=True):
                p.add_(s)
        yield
    finally:
        with torch.no_grad():
            for p, s in zip(parameters, saved, strict=True):
                p.copy_(s)
