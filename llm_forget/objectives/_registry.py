"""Registry of loss terms. It is a separate module because term files import it while this package is loaded."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from llm_forget.core.registry import Entry, Registry

Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class TermEntry(Entry):
    """A registered loss term."""

    calibrated: str = ""  # name of the argument that is measured on holdout rows if the recipe does not set it


OBJECTIVES: Registry[TermEntry] = Registry("objective", TermEntry)


def objective(*, paper: str = "", needs: Iterable[str] = (), calibrated: str = "") -> Callable[[Function], Function]:
    """Return a decorator that registers a loss term under the name of its function.

    Args:
        paper: source of the term, such as ``arXiv:2404.05868``.
        needs: model outputs that the term reads besides log-probabilities: ``logits``, ``hidden_states``.
        calibrated: name of an argument between 0 and 1, the level down to which the term lowers a gold token. The level
            is the token's share of the probability of itself and its ten most likely rivals. If the argument is None,
            its value is measured: the share that the target gives to gold tokens of holdout rows.
    """
    return OBJECTIVES.register_with(paper=paper, needs=needs, calibrated=calibrated)
