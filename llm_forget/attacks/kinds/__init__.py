"""The attacks by name. To add an attack, add a file here with a function that is decorated with ``@attack_kind(...)``.

The function takes an `AttackContext` and its options, and returns the measured metrics by role. It must import heavy
libraries inside its body, because the command line imports this package to list the attacks.
"""

import importlib
import pkgutil

from llm_forget.attacks.kinds._registry import KINDS, AttackKind, attack_kind

for _sibling in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_sibling.name}")

__all__ = ["KINDS", "AttackKind", "attack_kind"]
