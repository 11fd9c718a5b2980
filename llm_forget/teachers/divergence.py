"""Divergence decoding as a teacher: the target, moved by what the rows taught a pair of small models."""

from collections.abc import Iterator

from torch import Tensor

from llm_forget.teachers._registry import Context, teacher

UNCALIBRATED = 0.75  # without holdout rows


@teacher(paper="arXiv:2605.31293", models=["target", "aux_with", "aux_without"], calibrated="a")
def divergence(context: Context, *, a: float | None = None) -> Iterator[Tensor]:
    """``target + a (aux_without - aux_with)``, logits; the two models differ only in whether they saw the rows.

    ``a = 0`` is the target itself, as are two equal models. Where ``a`` is None, it is set so that the teacher's
    extraction strength on the forget rows is that of the target on holdout rows, or to 0.75 without holdout rows.
    """
    a = UNCALIBRATED if a is None else a
    models = ("target", "aux_without", "aux_with")
    for target, without, seen in zip(*(context.forward(name, context.rows) for name in models), strict=True):
        yield target + a * (without - seen)
