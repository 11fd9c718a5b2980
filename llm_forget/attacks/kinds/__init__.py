"""The attacks, found by name. To add one, add a file here that registers a function with `attack_kind`.

The function takes an `AttackContext` and its parameters, and returns the attacked lines by role. It imports libraries
only when it runs, because the command line lists the names of attacks without loading any library.
"""

import importlib
import pkgutil

from llm_forget.attacks.kinds._registry import KINDS, AttackKind, attack_kind

for _sibling in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_sibling.name}")

__all__ = ["KINDS", "AttackKind", "attack_kind"]
