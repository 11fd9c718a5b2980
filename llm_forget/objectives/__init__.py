"""Terms of objectives: pure functions of log-probabilities, each in a file of the same name. To add a term, add a file
here with one function under ``@objective(...)``. Files that start with ``_`` are not terms.
"""

import importlib
import pkgutil

from llm_forget.objectives._registry import OBJECTIVES, objective

__all__ = ["OBJECTIVES", "objective"]

for _module in pkgutil.iter_modules(__path__):
    if not _module.name.startswith("_"):
        importlib.import_module(f"{__name__}.{_module.name}")
