"""Teachers: what a model that never saw the rows to forget would say; one file each, file name = teacher name.

A new file here with one function under ``@teacher(...)`` is found without editing anything else. Files that start with
an underscore are not teachers.
"""

import importlib
import pkgutil

from llm_forget.teachers._names import borrowed_names, names_of, other_names
from llm_forget.teachers._registry import TEACHERS, teacher

__all__ = ["TEACHERS", "borrowed_names", "names_of", "other_names", "teacher"]

for _module in pkgutil.iter_modules(__path__):
    if not _module.name.startswith("_"):
        importlib.import_module(f"{__name__}.{_module.name}")
