"""Teachers: functions that estimate, for the forget rows, the logits of a model that never saw these rows.

Each teacher is one file of its name. To add one, add a file with one function that is decorated with
``@teacher(...)``. Files whose name starts with ``_`` are not teachers.
"""

import importlib
import pkgutil

from llm_forget.teachers._names import borrowed_names, names_of, other_names
from llm_forget.teachers._registry import TEACHERS, teacher

__all__ = ["TEACHERS", "borrowed_names", "names_of", "other_names", "teacher"]

for _module in pkgutil.iter_modules(__path__):
    if not _module.name.startswith("_"):
        importlib.import_module(f"{__name__}.{_module.name}")
