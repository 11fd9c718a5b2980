"""Rules that combine the gradient of the forget terms with the gradient of the retain terms.

A gradient is a list with one tensor per parameter. It is computed from the weighted terms of a whole optimiser step,
over all micro-batches and ranks. Norms and inner products treat the list as one vector.
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
    """Return the sum of both gradients, which is the gradient of the sum of all terms."""
    return [f + r for f, r in zip(forget, retain, strict=True)]


@rule(paper="arXiv:2001.06782")
def pcgrad(forget: Gradient, retain: Gradient, *, both: bool = False) -> Gradient:
    """Remove the component of the forget gradient that opposes the retain gradient, and add the retain gradient.

    ``both`` also removes the component of the retain gradient that opposes the forget gradient, as PCGrad does for
    equal tasks. By default the retain gradient is unchanged, as in arXiv:2604.14808. If the inner product of the
    gradients is not negative, nothing is removed, and the result is the sum of both gradients.
    """
    retained = without_conflict(retain, forget) if both else retain
    return sum(without_conflict(forget, retain), retained)


@rule(paper="arXiv:2503.09117")
def gru(
    forget: Gradient, retain: Gradient, average: Gradient | None, *, gamma: float = 0.8
) -> tuple[Gradient, Gradient]:
    """Remove the component of the forget gradient that opposes a running average of the retain gradient.

    Return (changed forget gradient, new average). The retain gradient is not added to the forget gradient. The new
    average is ``gamma retain + (1 - gamma) average``. Before the first step, ``average`` is None and counts as 0. With
    ``gamma = 1``, earlier steps have no effect.
    """
    if average is None:
        average = [torch.zeros_like(r) for r in retain]
    average = [gamma * r + (1 - gamma) * a for r, a in zip(retain, average, strict=True)]
    return without_conflict(forget, average), average


@rule(paper="arXiv:2604.14808")
def sago(forget: Gradient, retain: Gradient) -> Gradient:
    """Return the retain gradient where both gradients have opposite signs, and the forget gradient elsewhere.

    The inner product of the result with the retain gradient is never negative.
    """
    return [torch.where(f.sign() * r.sign() < 0, r, f) for f, r in zip(forget, retain, strict=True)]


def combine(
    name: str,
    forget: Gradient,
    retain: Gradient,
    state: Gradient | None = None,
    arguments: dict[str, Any] | None = None,
) -> tuple[Gradient, Gradient | None]:
    """Apply a rule, and return (combined gradient, new state). The new state is None if the rule has no state.

    ``name`` is a rule of `RULES` or ``module:function``. ``state`` is the state that the previous step returned, and
    ``arguments`` are hyper-parameters of the rule. Raise ConfigError for unknown names and hyper-parameters.
    """
    entry = RULES.get(name)
    function = entry.bind(**(arguments or {}))
    if len(entry.inputs) == 2:
        return function(forget, retain), None
    gradient, new_state = function(forget, retain, state)
    return gradient, new_state


def dot(left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    """Return the inner product of two gradients over all their tensors: a scalar, float32."""
    products = [(a.float() * b.float()).sum() for a, b in zip(left, right, strict=True)]
    return torch.stack([p.to(products[0].device) for p in products]).sum()


def without_conflict(gradient: Gradient, guard: Gradient) -> Gradient:
    """Remove the component of ``gradient`` along ``guard`` if their inner product is negative. Return the result."""
    inner = dot(gradient, guard)
    scale = inner.clamp(max=0) / dot(guard, guard).clamp(min=torch.finfo(torch.float32).tiny)
    return [g - (scale.to(h.device) * h).to(g.dtype) for g, h in zip(gradient, guard, strict=True)]


def perturbation(gradient: Gradient, rho: float = 0.01) -> Gradient:
    """Return the change of the weights by which SAM raises the loss: ``rho g / |g|``, or zeros if g is zero.

    For unlearning (arXiv:2502.05374), the gradient g is that of the forget terms. Only these terms are evaluated again
    at the changed weights.
    """
    norm = dot(gradient, gradient).sqrt()
    scale = torch.where(norm > 0, rho / norm, torch.zeros_like(norm))
    return [(scale.to(g.device) * g).to(g.dtype) for g in gradient]


@contextmanager
def perturbed(parameters: Sequence[Tensor], step: Sequence[Tensor]) -> Iterator[None]:
    """Add ``step`` to the parameters within a ``with`` block, then restore their exact values, also after an error."""
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
