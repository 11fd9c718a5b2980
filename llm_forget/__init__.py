"""Make a language model forget, and measure whether it did.

>>> from llm_forget import evaluate, unlearn
>>> run = unlearn(model_name_or_path="org/model", forget="forget.jsonl", retain="retain.jsonl", output_dir="runs/first")
>>> results = evaluate(run.path)
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llm_forget.attacks.attack import attack
    from llm_forget.config import DataConfig, TrainConfig, UnlearnConfig
    from llm_forget.evaluate import evaluate
    from llm_forget.finetune import finetune
    from llm_forget.logprobs import Logprobs
    from llm_forget.methods import METHODS, Objective, build_objective
    from llm_forget.models import merge_adapter
    from llm_forget.objectives import objective
    from llm_forget.report import report
    from llm_forget.run import Run
    from llm_forget.sweep import sweep
    from llm_forget.trainer import UnlearnTrainer
    from llm_forget.unlearn import unlearn
    from llm_forget.verify import verify

__all__ = [
    "METHODS",
    "DataConfig",
    "Logprobs",
    "Objective",
    "Run",
    "TrainConfig",
    "UnlearnConfig",
    "UnlearnTrainer",
    "attack",
    "build_objective",
    "evaluate",
    "finetune",
    "merge_adapter",
    "objective",
    "report",
    "sweep",
    "unlearn",
    "verify",
]
__version__ = "0.1.0"

_HOMES = {"DataConfig": "config", "TrainConfig": "config", "UnlearnConfig": "config", "UnlearnTrainer": "trainer"} | {
    "METHODS": "methods", "Objective": "methods", "build_objective": "methods", "objective": "objectives"
} | {"Logprobs": "logprobs", "Run": "run", "merge_adapter": "models", "attack": "attacks.attack"}  # fmt: skip


def __getattr__(name: str) -> Any:
    # Torch and transformers take seconds to import; whoever only asks for the version should not wait.
    if name not in __all__:
        raise AttributeError(f"module 'llm_forget' has no attribute '{name}'")
    return getattr(importlib.import_module(f"llm_forget.{_HOMES.get(name, name)}"), name)


class _Package(ModuleType):
    def __setattr__(self, name: str, value: Any) -> None:
        # Importing the submodule llm_forget.unlearn must not hide the function llm_forget.unlearn.
        if not (name in __all__ and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
