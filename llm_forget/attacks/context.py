"""What an attack is given: the models under attack, and how they are measured."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llm_forget.core.config import DataConfig
from llm_forget.core.run_directory import Run
from llm_forget.models.digest import PRECISION
from llm_forget.workflows.evaluate import evaluate

Lines = dict[str, dict[str, Any]]  # by name: value, ci, n
DATA_KEYS = tuple(f.name for f in dataclasses.fields(DataConfig))


@dataclass(frozen=True)
class AttackContext:
    """An unlearned run, its oracle where there is one, and a folder for what the attack makes."""

    run: Run
    suite: str
    folder: Path
    plain: dict[str, Lines]  # what the suite says without the attack, by role
    limit: int | None = None
    batch_size: int = 64
    overrides: dict[str, Any] = field(default_factory=dict)

    @property
    def config(self) -> dict[str, Any]:
        """The run's configuration, with what was given for this attack in place of it."""
        return {**self.run.config, **self.overrides}

    @property
    def models(self) -> dict[str, str]:
        """Names of the models under attack, by role."""
        oracle = self.config.get("oracle")
        return {"unlearned": str(self.run.path)} | ({"oracle": str(oracle)} if oracle else {})

    def measure(self, name: str, **changes: Any) -> Lines:
        """Lines of the suite for one attacked model, on the rows of the run.

        What compares with the oracle or the model before compares with those in the same precision and template, but
        otherwise not attacked, for all alike.
        """
        # In the precision of the run, since the numbers without the attack are in that.
        run_keys = (*DATA_KEYS, *PRECISION, "attn_implementation", "use_cpu")
        arguments = {key: self.config[key] for key in run_keys if self.config.get(key) is not None}
        arguments = {**arguments, **changes}
        arguments.pop("train", None)
        if (Path(name) / "adapter").is_dir():
            # The adapter as it is, not as a run: the run's own results are of the model that was not attacked.
            name = str(Path(name) / "adapter")
        target = {"target": self.config["model_name_or_path"], "target_revision": self.config.get("model_revision")}
        others = {**target, "oracle": self.config.get("oracle")}
        # Not kept as results either: an oracle that is a whole model is a run as well.
        results = evaluate(
            name, self.suite, **others, limit=self.limit, batch_size=self.batch_size, quiet=True, keep=False,
            records=self.folder / "records", **arguments,
        )  # fmt: skip
        (suite,) = results["suites"].values()
        return lines_of(suite, "unlearned")


def lines_of(suite: dict[str, Any], role: str) -> Lines:
    """Value, interval and count of every line of a suite for one model; nothing where the model was not measured."""
    lines = {name: line if role == "unlearned" else line[role] for name, line in suite["metrics"].items()}
    return {name: {key: line[key] for key in ("value", "ci", "n")} for name, line in lines.items() if line is not None}
