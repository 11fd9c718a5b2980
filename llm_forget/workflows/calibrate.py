"""Before training, measure the target on holdout rows, to estimate the levels that unlearning should reach."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table
from trl import ModelConfig

from llm_forget.core.config import DataConfig, UnlearnConfig, from_keys, parse
from llm_forget.core.errors import ConfigError
from llm_forget.core.text import terminal
from llm_forget.models.load import load_base, to_device
from llm_forget.objectives.methods import build_objective
from llm_forget.training.calibration import NAMES, forward_of, levels_with_intervals, measure, sample
from llm_forget.training.job import holdout_rows, prepare

MEANINGS = {
    "strength": "extraction strength",
    "memorization": "exact memorization",
    "margin": "margin of the gold token, nats",
    "logprob": "log-prob of a token, nats",
}


def main(argv: Sequence[str]) -> dict[str, Any]:
    """Calibrate with command-line arguments ``RECIPE.yaml --key value`` of `unlearn`, and print the table."""
    levels = run_calibration(*parse(argv, UnlearnConfig))
    show(levels, terminal())
    return levels


def calibrate(**keys: Any) -> dict[str, Any]:
    """Calibrate with the keys of an unlearning recipe as arguments.

    Returns:
        ``holdout``: for each level, the ``value`` of the target on holdout rows, and ``low`` and ``high`` of its 95 %
        interval over subjects. ``forget``: for each level, its value on forget rows.

    Raise ConfigError if holdout or forget rows are missing.
    """
    return run_calibration(*from_keys(keys, UnlearnConfig))


def run_calibration(data: DataConfig, train: UnlearnConfig, model: ModelConfig) -> dict[str, Any]:
    """Calibrate with a checked configuration. `calibrate` and the command line call this function."""
    for split in ("forget", "holdout"):
        if getattr(data, split) is None:
            raise ConfigError(f"calibration needs rows of '{split}'; set the key '{split}' to a file or data set")
    objective = build_objective(objective={"forget": {"name": "ga"}})
    tokenizer, splits, _ = prepare(data, model, objective)
    holdout, subjects = holdout_rows(data, tokenizer)
    forward = forward_of(to_device(load_base(model)), int(tokenizer.pad_token_id))
    levels = levels_with_intervals(forward, holdout, subjects)
    forget = {name: float(values.mean()) for name, values in measure(forward, sample(splits["forget"])).items()}
    return {"holdout": {name: asdict(level) for name, level in levels.items()}, "forget": forget}


def show(levels: dict[str, Any], console: Console) -> None:
    """Print the result of `calibrate` as a table."""
    table = Table("level", "forget rows now", "unseen rows", "95 % interval")
    for name in NAMES:
        holdout = levels["holdout"][name]
        interval = f"{holdout['low']:.3f} to {holdout['high']:.3f}"
        table.add_row(MEANINGS[name], f"{levels['forget'][name]:.3f}", f"{holdout['value']:.3f}", interval)
    console.print(table)
    console.print(
        "After unlearning, the forget rows should be inside the intervals, neither above nor below. This is a "
        "calibration on rows that were never trained on, no proof.",
        highlight=False,
    )
