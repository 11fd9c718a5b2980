"""The kinds of run. Each file in this folder declares kinds with `run_kind`, and must import no training library."""

import importlib
import pkgutil

from llm_forget.core.run_kinds._registry import RunKind, kind_named, kind_of, run_kind

for _sibling in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_sibling.name}")

__all__ = ["RunKind", "kind_named", "kind_of", "run_kind"]
