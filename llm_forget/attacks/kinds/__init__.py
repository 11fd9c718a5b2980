"""The attacks, found by name: a file that registers a function with `attack_kind` is all that a new one needs.

The function takes an `AttackContext` and its parameters, and returns the attacked lines by role. Its libraries are
imported when it runs, because the command line lists the names without loading any.
"""

import importlib
import pkgutil

from llm_forget.attacks.kinds._registry import KINDS, AttackKind, attack_kind

for _sibling in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_sibling.name}")

__all__ = ["KINDS", "AttackKind", "attack_kind"]
