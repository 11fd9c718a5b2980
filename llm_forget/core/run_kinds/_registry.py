"""The registry of the kinds of run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from llm_forget.core.errors import ConfigError
from llm_forget.core.run_directory import Run

_KINDS: dict[str, RunKind] = {}


@dataclass(frozen=True)
class RunKind:
    """A kind of run, and the splits that runs of this kind learned or forgot."""

    name: str  # in run.json; for a run that trains, also the command that resumes it
    learned: tuple[str, ...] = ()  # splits that the model was trained to know
    forgotten: tuple[str, ...] = ()  # splits that it was trained to forget; only a run with such splits can be attacked
    merged: bool = False  # true for versions of merged models: the ledger records the merged runs instead of splits
    origin: Callable[[Mapping[str, Any]], str] = lambda provenance: ""  # returns the model's origin for the model card

    @property
    def trained(self) -> bool:
        """Whether provenance.json of a run of this kind lists rows to learn or to forget."""
        return bool(self.learned or self.forgotten)


def run_kind(name: str, **properties: Any) -> RunKind:
    """Declare a kind of run and return it. Raise ConfigError if the name is already declared."""
    kind = RunKind(name, **properties)
    if _KINDS.setdefault(name, kind) is not kind:
        raise ConfigError(f"run kind '{name}' is already declared")
    return kind


def kind_of(run: Run) -> RunKind:
    """Return the kind of a run."""
    return kind_named(run.state["kind"])


def kind_named(name: str) -> RunKind:
    """Return the declared kind of this name. For an unknown name, return a kind without properties."""
    return _KINDS.get(name) or RunKind(name)
