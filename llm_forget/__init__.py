"""Make a language model forget chosen rows, and measure whether it has forgotten them.

>>> from llm_forget import evaluate, unlearn
>>> run = unlearn(model_name_or_path="org/model", forget="forget.jsonl", retain="retain.jsonl", output_dir="runs/first")
>>> results = evaluate(run.path)
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from llm_forget.core import __version__  # noqa: F401

if TYPE_CHECKING:
    from llm_forget.attacks.run import attack
    from llm_forget.core.config import DataConfig, TrainConfig, UnlearnConfig
    from llm_forget.core.run_directory import Run
    from llm_forget.evals.policy import verify
    from llm_forget.logprobs.logprobs import Logprobs
    from llm_forget.models.merging.full_model import merge_adapter
    from llm_forget.objectives import objective
    from llm_forget.objectives.methods import METHODS, Objective, build_objective
    from llm_forget.report import report
    from llm_forget.training.trainer import UnlearnTrainer
    from llm_forget.workflows.calibrate import calibrate
    from llm_forget.workflows.evaluate import evaluate
    from llm_forget.workflows.finetune import finetune
    from llm_forget.workflows.sweep import sweep
    from llm_forget.workflows.unlearn import unlearn

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
    "calibrate",
    "evaluate",
    "finetune",
    "merge_adapter",
    "objective",
    "report",
    "sweep",
    "unlearn",
    "verify",
]

_HOMES = {
    "METHODS": "objectives.methods",
    "DataConfig": "core.config",
    "Logprobs": "logprobs.logprobs",
    "Objective": "objectives.methods",
    "Run": "core.run_directory",
    "TrainConfig": "core.config",
    "UnlearnConfig": "core.config",
    "UnlearnTrainer": "training.trainer",
    "attack": "attacks.run",
    "build_objective": "objectives.methods",
    "calibrate": "workflows.calibrate",
    "evaluate": "workflows.evaluate",
    "finetune": "workflows.finetune",
    "merge_adapter": "models.merging.full_model",
    "objective": "objectives",
    "report": "report",
    "sweep": "workflows.sweep",
    "unlearn": "workflows.unlearn",
    "verify": "evals.policy",
}


def __getattr__(name: str) -> Any:
    # Import a name when it is first used: importing torch takes seconds, and `--version` does not need it.
    if name not in __all__:
        raise AttributeError(f"module 'llm_forget' has no attribute '{name}'")
    return getattr(importlib.import_module(f"llm_forget.{_HOMES[name]}"), name)


class _Package(ModuleType):
    def __setattr__(self, name: str, value: Any) -> None:
        # Importing the subpackage llm_forget.report must not hide the function llm_forget.report.
        if not (name in __all__ and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
