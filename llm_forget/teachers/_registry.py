"""Registry of teachers, and the rows and models that a teacher receives."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor

from llm_forget.core.registry import Entry, Registry
from llm_forget.data.rows import Row

Function = TypeVar("Function", bound=Callable[..., Iterator[Tensor]])


@dataclass(frozen=True)
class Context:
    """The rows and models that a teacher works with. The caller of the teacher loads the models.

    ``forward(model, rows)`` yields the logits at the target positions of each row in turn, ``[n, V]``, float32.
    ``generate(model, rows)`` returns a model's greedy answers to the prompts of rows. ``model`` is a name such as
    ``target``.
    """

    rows: Sequence[Row]  # the forget rows, followed by rows that the teacher's `texts` function added
    retain: Sequence[Row]  # a sample of the retain rows
    forward: Callable[[str, Sequence[Row]], Iterator[Tensor]]
    generate: Callable[[str, Sequence[Row]], list[str]]
    tokens: Callable[[str], list[int]]  # returns the token ids of a text inside a sentence, that is, after a space
    targets: Callable[[Row], list[int]]  # returns the ids of the target tokens of a row
    seed: int = 0


@dataclass(frozen=True)
class TeacherEntry(Entry):
    """A registered teacher: a generator that yields logits ``[n, V]``, one tensor for each row of its context."""

    models: tuple[str, ...] = ("target",)  # names of models that it reads: target, oracle, aux_with, aux_without
    texts: Callable[..., list[Row]] | None = None  # returns further rows on which the policy learns
    calibrated: str = ""  # name of the argument that is measured on holdout rows if the recipe does not set it


TEACHERS: Registry[TeacherEntry] = Registry("teacher", TeacherEntry)


def teacher(
    *,
    paper: str = "",
    models: Iterable[str] = ("target",),
    texts: Callable[..., list[Row]] | None = None,
    calibrated: str = "",
) -> Callable[[Function], Function]:
    """Return a decorator that registers a teacher under the name of its function.

    Args:
        paper: source of the teacher, such as ``arXiv:2605.31293``.
        models: names of the models that the teacher passes to ``context.forward``.
        texts: function with the arguments of the teacher. It returns further rows on which the policy learns.
        calibrated: name of an argument. Higher values must lower the teacher's extraction strength on the forget rows.
            If it is None, its value is the one at which this strength equals that of the target on holdout rows.
    """
    properties: dict[str, Any] = {"models": tuple(models), "texts": texts, "calibrated": calibrated}
    return TEACHERS.register_with(paper=paper, **properties)
