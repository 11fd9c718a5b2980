"""Fine-tune models: targets, which are trained on the forget rows, and oracles, which are not."""

from collections.abc import Sequence
from typing import Any

from trl import ModelConfig

from llm_forget.core.config import DataConfig, TrainConfig, from_keys, parse
from llm_forget.core.errors import ConfigError
from llm_forget.core.run_directory import Run
from llm_forget.core.run_kinds.finetune import FINETUNE
from llm_forget.objectives.methods import build_objective
from llm_forget.training.job import run_job


def main(argv: Sequence[str]) -> Run:
    """Fine-tune with command-line arguments ``RECIPE.yaml --key value``."""
    return run_finetuning(*parse(argv, TrainConfig))


def finetune(**keys: Any) -> Run:
    """Fine-tune the full model, or with ``use_peft=True`` an adapter. Arguments are recipe keys. Return the run."""
    return run_finetuning(*from_keys(keys, TrainConfig))


def run_finetuning(data: DataConfig, train: TrainConfig, model: ModelConfig) -> Run:
    """Fine-tune with a checked configuration. `finetune` and the command line call this function."""
    if data.train is None:
        raise ConfigError("finetune needs rows to train on; set the key 'train' to a file or data set")
    objective = build_objective(objective={"train": {"name": "nll"}})
    return run_job(FINETUNE, data, train, model, objective)
