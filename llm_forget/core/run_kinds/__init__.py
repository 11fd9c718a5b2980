"""The kinds of run, found by the name in run.json. The files here declare them and their properties.

To add a kind, add a file that calls `run_kind`; the ledger, deletion requests, reports, attacks and model cards read
the properties. The file imports nothing heavy, because readers of runs do not load a training library.
"""

import importlib
import pkgutil

from llm_forget.core.run_kinds._registry import RunKind, kind_named, kind_of, run_kind

for _sibling in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_sibling.name}")

__all__ = ["RunKind", "kind_named", "kind_of", "run_kind"]
