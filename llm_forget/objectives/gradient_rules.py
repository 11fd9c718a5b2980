"""Rules that combine the gradient of the forget terms with the gradient of the retain terms. A gradient is a list with
one tensor per parameter, weighted, averaged over the optimiser step and reduced over ranks. Norms and inner products
treat this list as one vector.
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
    """Return the sum of both gradients, which is the gradient of the summed loss."""
    return [f + r for f, r in zip(forget, retain, strict=True)]


@rule(paper="arXiv:2001.06782")
def pcgrad(forget: Gradient, retain: Gradient, *, both: bool = False) -> Gradient:
    """Remove the component of the forget gradient that opposes the retain gradient, then add the two. ``both`` also
    removes the component of the retain gradient that opposes the forget gradient, as PCGrad does for equal tasks. The
    default gives priority to the retain gradient, as in arXiv:2604.14808. Gradients without conflict are only added.
    """
    retained = without_conflict(retain, forget) if both else retain
    return sum(without_conflict(forget, retain), retained)


@rule(paper="arXiv:2503.09117")
def gru(
    forget: Gradient, retain: Gradient, average: Gradient | None, *, gamma: float = 0.8
) -> tuple[Gradient, Gradient]:
    """Remove the component of the forget gradient that opposes a running average of the retain gradient.

    The retain gradient itself is not added. Returns the gradient and the new average,
    ``gamma retain + (1 - gamma) average``. ``average`` is None before the first step. ``gamma = 1`` ignores earlier
    steps.
    """
    if average is None:
        average = [torch.zeros_like(r) for r in retain]
    average = [gamma * r + (1 - gamma) * a for r, a in zip(retain, average, strict=True)]
    return without_conflict(forget, average), average


@rule(paper="arXiv:2604.14808")
def sago(forget: Gradient, retain: Gradient) -> Gradient:
    """Take, in each coordinate, the retain gradient if the signs are opposite, otherwise the forget gradient. The inner
    product of the result with the retain gradient is never negative.
    """
    return [torch.where(f.sign() * r.sign() < 0, r, f) for f, r in zip(forget, retain, strict=True)]


def combine(
    name: str,
    forget: Gradient,
    retain: Gradient,
    state: Gradient | None = None,
    arguments: dict[str, Any] | None = None,
) -> tuple[Gradient, Gradient | None]:
    """Apply the rule ``name`` (of `RULES`, or ``module:function``) with the state that the previous step returned.
    Returns the combined gradient and the new state (None for rules without one). Raises ConfigError for unknown names.
    """
    entry = RULES.get(name)
    function = entry.bind(**(arguments or {}))
    if len(entry.inputs) == 2:
        return function(forget, retain), None
    gradient, new_state = function(forget, retain, state)
    return gradient, new_state


def dot(left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    """Return the inner product of two gradients as whole vectors: a scalar, float32."""
    products = [(a.float() * b.float()).sum() for a, b in zip(left, right, strict=True)]
    return torch.stack([p.to(products[0].device) for p in products]).sum()


def without_conflict(gradient: Gradient, guard: Gradient) -> Gradient:
    """Return ``gradient`` minus its component along ``guard`` if their inner product is negative, else unchanged."""
    inner = dot(gradient, guard)
    scale = inner.clamp(max=0) / dot(guard, guard).clamp(min=torch.finfo(torch.float32).tiny)
    return [g - (scale.to(h.device) * h).to(g.dtype) for g, h in zip(gradient, guard, strict=True)]


def perturbation(gradient: Gradient, rho: float = 0.01) -> Gradient:
    """Return SAM's step towards a higher loss, ``rho g / |g|``, or zeros for a zero gradient (arXiv:2502.05374). For
    unlearning, g is the gradient of the forget terms; only these are evaluated again at the perturbed weights.
    """
    norm = dot(gradient, gradient).sqrt()
    scale = torch.where(norm > 0, rho / norm, torch.zeros_like(norm))
    return [(scale.to(g.device) * g).to(g.dtype) for g in gradient]


@contextmanager
def perturbed(parameters: Sequence[Tensor], step: Sequence[Tensor]) -> Iterator[None]:
    """Add ``step`` to the parameters inside the block, and restore their exact values on exit, also after an error."""
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
