"""Registry of attacks; a separate module, so that attack modules can be imported one by one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from llm_forget.core.registry import Entry, Registry

# Takes the recipe keys of the run and the arguments of the attack; returns the forget rows to measure (None: all) and
# the number of rows left out. It runs before any measurement, so it also refuses invalid arguments.
Prepare = Callable[[Mapping[str, Any], Mapping[str, Any]], tuple[list[dict[str, Any]] | None, int]]


def _all_rows(config: Mapping[str, Any], arguments: Mapping[str, Any]) -> tuple[None, int]:
    return None, 0


@dataclass(frozen=True)
class AttackKind(Entry):
    """An attack, with the properties that `attack` and certificates read."""

    suite: str = ""  # the suite that it measures; empty: any
    prepare: Prepare = _all_rows
    recovers_rows: bool = True  # it tries to recover rows; if False, it only finds out which rows were forgotten


KINDS = Registry("attack", AttackKind)
attack_kind = KINDS.register_with
