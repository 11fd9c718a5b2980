"""Registry of the kinds of run; a separate module, so that each declaration can be imported by itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from llm_forget.core.errors import ConfigError
from llm_forget.core.run_directory import Run

_KINDS: dict[str, RunKind] = {}


@dataclass(frozen=True)
class RunKind:
    """A kind of run, and what its runs learned or forgot.

    Args:
        name: the name in run.json; for a run that trains, also the command that resumes it.
        learned: splits that the model was trained to know, if the run has them.
        forgotten: splits that it was trained to forget. Only such a run has a target, can be attacked, and is itself
            evaluated as the unlearned model.
        merged: whether it is a version of a merged model, for which the ledger records runs in place of splits.
        origin: makes a clause for the model card from provenance.json; empty for a run that forgot rows.
    """

    name: str
    learned: tuple[str, ...] = ()
    forgotten: tuple[str, ...] = ()
    merged: bool = False
    origin: Callable[[Mapping[str, Any]], str] = lambda provenance: ""

    @property
    def trained(self) -> bool:
        """Whether provenance.json of such a run lists rows to learn or to forget."""
        return bool(self.learned or self.forgotten)


def run_kind(name: str, **properties: Any) -> RunKind:
    """Declare a kind of run.

    Raises:
        ConfigError: another declaration has this name.
    """
    kind = RunKind(name, **properties)
    if _KINDS.setdefault(name, kind) is not kind:
        raise ConfigError(f"run kind '{name}' is already declared")
    return kind


def kind_of(run: Run) -> RunKind:
    """Return the kind of a run."""
    return kind_named(run.state["kind"])


def kind_named(name: str) -> RunKind:
    """Return the kind of this name; an undeclared name gives a kind without properties."""
    return _KINDS.get(name) or RunKind(name)
