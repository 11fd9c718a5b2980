"""Registry of teachers, and what a teacher works with."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor

from llm_forget.core.registry import Entry, Registry
from llm_forget.data.rows import Row

Function = TypeVar("Function", bound=Callable[..., Iterator[Tensor]])


@dataclass(frozen=True)
class Context:
    """Rows and models of a teacher; who calls it loads the models.

    ``forward(model, rows)`` gives the logits at the target positions of each row, ``[n, V]`` float32, one row at a
    time. ``generate(model, rows)`` gives the greedy answer of a model to each row's prompt.
    """

    rows: Sequence[Row]  # to forget, then those that the teacher's ``texts`` added
    retain: Sequence[Row]  # a sample
    forward: Callable[[str, Sequence[Row]], Iterator[Tensor]]
    generate: Callable[[str, Sequence[Row]], list[str]]
    tokens: Callable[[str], list[int]]  # ids of a text inside a sentence: after a space
    targets: Callable[[Row], list[int]]  # ids of the target tokens of a row
    seed: int = 0


@dataclass(frozen=True)
class TeacherEntry(Entry):
    """A registered teacher: a generator of logits ``[n, V]``, one tensor for each row of its context."""

    models: tuple[str, ...] = ("target",)  # that it reads: target, oracle, base, aux_with, aux_without
    texts: Callable[..., list[Row]] | None = None  # further rows to learn on, made from the context
    calibrated: str = ""  # argument that is found on holdout rows where the recipe leaves it out


TEACHERS: Registry[TeacherEntry] = Registry("teacher", TeacherEntry)


def teacher(
    *,
    paper: str = "",
    models: Iterable[str] = ("target",),
    texts: Callable[..., list[Row]] | None = None,
    calibrated: str = "",
) -> Callable[[Function], Function]:
    """Register a teacher under the name of its function.

    Args:
        paper: where it is from, as ``arXiv:2605.31293``.
        models: names of the models that its ``context.forward`` is called with.
        texts: called as the teacher is; further rows on which the policy learns from it.
        calibrated: an argument whose higher values lower the extraction strength of the teacher on the forget rows; if
            it is None, it is set so that this strength is that of the target on holdout rows.
    """
    properties: dict[str, Any] = {"models": tuple(models), "texts": texts, "calibrated": calibrated}
    return TEACHERS.register_with(paper=paper, **properties)
