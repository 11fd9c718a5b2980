"""Input of an attack: the models under attack and how to measure them."""

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
    """An unlearned run, its oracle if it has one, and the output folder of the attack."""

    run: Run
    suite: str
    folder: Path
    plain: dict[str, Lines]  # lines of the suite without the attack, by role
    limit: int | None = None
    batch_size: int = 64
    overrides: dict[str, Any] = field(default_factory=dict)

    @property
    def config(self) -> dict[str, Any]:
        """Configuration of the run with the overrides of this attack."""
        return {**self.run.config, **self.overrides}

    @property
    def models(self) -> dict[str, str]:
        """Names of the models under attack, by role."""
        oracle = self.config.get("oracle")
        return {"unlearned": str(self.run.path)} | ({"oracle": str(oracle)} if oracle else {})

    def measure(self, name: str, **changes: Any) -> Lines:
        """Measure the suite on one attacked model, with the rows of the run.

        Lines that compare with the oracle or the target use the unattacked oracle and target, in the same precision and
        template as the attacked model.
        """
        # The precision is that of the run, as in the numbers without the attack.
        run_keys = (*DATA_KEYS, *PRECISION, "attn_implementation", "use_cpu")
        arguments = {key: self.config[key] for key in run_keys if self.config.get(key) is not None}
        arguments = {**arguments, **changes}
        arguments.pop("train", None)
        if (Path(name) / "adapter").is_dir():
            # Measure the adapter, because the results of its run belong to the unattacked model.
            name = str(Path(name) / "adapter")
        target = {"target": self.config["model_name_or_path"], "target_revision": self.config.get("model_revision")}
        others = {**target, "oracle": self.config.get("oracle")}
        # keep=False: an oracle that is a full model is a run, too, whose results must not be overwritten.
        results = evaluate(
            name, self.suite, **others, limit=self.limit, batch_size=self.batch_size, quiet=True, keep=False,
            records=self.folder / "records", **arguments,
        )  # fmt: skip
        (suite,) = results["suites"].values()
        return lines_of(suite, "unlearned")


def lines_of(suite: dict[str, Any], role: str) -> Lines:
    """Return value, interval and count of every line of a suite for one model; empty if the model was not measured."""
    lines = {name: line if role == "unlearned" else line[role] for name, line in suite["metrics"].items()}
    return {name: {key: line[key] for key in ("value", "ci", "n")} for name, line in lines.items() if line is not None}
