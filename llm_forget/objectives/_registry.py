"""Registry of terms. It is a separate module because term files import it while the package is being loaded."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from llm_forget.core.registry import Entry, Registry

Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class TermEntry(Entry):
    """A registered term of an objective."""

    calibrated: str = ""  # argument that is found on holdout rows where the recipe leaves it out


OBJECTIVES: Registry[TermEntry] = Registry("objective", TermEntry)


def objective(*, paper: str = "", needs: Iterable[str] = (), calibrated: str = "") -> Callable[[Function], Function]:
    """Register a term under the name of its function.

    Args:
        paper: where it is from, as ``arXiv:2404.05868``.
        needs: outputs of the model beyond log-probabilities: ``logits``, ``hidden_states``.
        calibrated: an argument between 0 and 1: the share of the gold token among itself and its ten best rivals that
            the term leaves alone. If it is None, it is the share of the target on holdout rows.
    """
    return OBJECTIVES.register_with(paper=paper, needs=needs, calibrated=calibrated)
