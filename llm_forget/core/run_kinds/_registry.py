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
    """What a run of this kind was made for.

    Args:
        name: as in run.json; for what is trained here also the command that resumes it.
        learned: splits that the model was trained to know, if the run has them.
        forgotten: splits that it was trained to forget. Only such a run has a target, can be attacked, and is itself
            evaluated as the unlearned model.
        merged: a version of a model that was merged from other runs, which the ledger records in place of splits.
        origin: clause for the model card, made of provenance.json; empty for a run that forgot.
    """

    name: str
    learned: tuple[str, ...] = ()
    forgotten: tuple[str, ...] = ()
    merged: bool = False
    origin: Callable[[Mapping[str, Any]], str] = lambda provenance: ""

    @property
    def trained(self) -> bool:
        """Whether its provenance lists rows that were learned or to be forgotten."""
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
    """The kind of a run."""
    return kind_named(run.state["kind"])


def kind_named(name: str) -> RunKind:
    """The kind of this name; a name without a declaration has no properties."""
    return _KINDS.get(name) or RunKind(name)
