"""Teacher ``divergence``: the target's logits, shifted by the effect that the forget rows had on a small model."""

from collections.abc import Iterator

from torch import Tensor

from llm_forget.teachers._registry import Context, teacher

UNCALIBRATED = 0.75  # without holdout rows


@teacher(paper="arXiv:2605.31293", models=["target", "aux_with", "aux_without"], calibrated="a")
def divergence(context: Context, *, a: float | None = None) -> Iterator[Tensor]:
    """Yield, for each row, the logits ``target + a (aux_without - aux_with)``.

    The two small models differ only in whether the forget rows were in their training data. The result equals the
    target if ``a = 0`` or if both are equal. If ``a`` is None, its value is the one at which the teacher's extraction
    strength on the forget rows equals that of the target on holdout rows; without holdout rows, it is 0.75.
    """
    a = UNCALIBRATED if a is None else a
    models = ("target", "aux_without", "aux_with")
    for target, without, seen in zip(*(context.forward(name, context.rows) for name in models), strict=True):
        yield target + a * (without - seen)
