"""Augmentations: functions that make further training rows from a row, which ask for the same fact in another way.

Each is one file with the name of its key in the recipe. To add one, add a file with one function that is decorated with
``@augmentation(...)``. Files whose name starts with ``_`` are not augmentations.
"""

import importlib
import pkgutil

from llm_forget.data.augmentations._registry import AUGMENTATIONS, augmentation

__all__ = ["AUGMENTATIONS", "augmentation"]

for _module in pkgutil.iter_modules(__path__):
    if not _module.name.startswith("_"):
        importlib.import_module(f"{__name__}.{_module.name}")
