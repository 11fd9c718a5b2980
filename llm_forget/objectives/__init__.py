"""Loss terms: pure functions of log-probabilities, each in a file of the same name.

To add a term, add a file with one function that is decorated with ``@objective(...)``. Files whose name starts with
``_`` are not terms. `gradient_rules` and `methods` register no terms.
"""

import importlib
import pkgutil

from llm_forget.objectives._registry import OBJECTIVES, objective

__all__ = ["OBJECTIVES", "objective"]

for _module in pkgutil.iter_modules(__path__):
    if not _module.name.startswith("_"):
        importlib.import_module(f"{__name__}.{_module.name}")
