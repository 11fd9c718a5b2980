"""The kinds of run and what readers need to know of each: one declaration a file, found by the name in run.json.

A file that calls `run_kind` with the properties of a new kind is all that the ledger, deletion requests, reports,
attacks and model cards need. It imports nothing heavy, because readers of runs do not load a training library.
"""

import importlib
import pkgutil

from llm_forget.core.run_kinds._registry import RunKind, kind_named, kind_of, run_kind

for _sibling in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_sibling.name}")

__all__ = ["RunKind", "kind_named", "kind_of", "run_kind"]
