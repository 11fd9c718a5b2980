"""Augmentations: further rows that ask for the fact of a row in another way; one file each, file name = key.

A new file here with one function under ``@augmentation(...)`` is found without editing anything else. Files that start
with an underscore are not augmentations.
"""

import importlib
import pkgutil

from llm_forget.data.augmentations._registry import AUGMENTATIONS, augmentation

__all__ = ["AUGMENTATIONS", "augmentation"]

for _module in pkgutil.iter_modules(__path__):
    if not _module.name.startswith("_"):
        importlib.import_module(f"{__name__}.{_module.name}")
