"""Registry of attacks, in a module of its own, because attack files import it while the package is being loaded."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from llm_forget.core.registry import Entry, Registry

# A function that takes the recipe keys of the run and the options of the attack. It returns the forget rows to measure
# (None: all) and the number of rows left out. It runs before all measurements, and raises if an option is invalid.
Prepare = Callable[[Mapping[str, Any], Mapping[str, Any]], tuple[list[dict[str, Any]] | None, int]]


def _all_rows(config: Mapping[str, Any], arguments: Mapping[str, Any]) -> tuple[None, int]:
    return None, 0


@dataclass(frozen=True)
class AttackKind(Entry):
    """A registered attack, with properties that `llm_forget.attacks.run.attack` and certificates read."""

    suite: str = ""  # the only suite that the attack can measure; empty: any suite
    prepare: Prepare = _all_rows
    recovers_rows: bool = True  # False: the attack only infers which rows were forgotten


KINDS = Registry("attack", AttackKind)
attack_kind = KINDS.register_with
