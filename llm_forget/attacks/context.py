"""The input of every attack: the run, its models, and a function that evaluates an attacked model."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llm_forget.core.config import DataConfig
from llm_forget.core.run_directory import Run, oracle_names
from llm_forget.models.digest import PRECISION
from llm_forget.workflows.evaluate import evaluate

Lines = dict[str, dict[str, Any]]  # metrics by name, each with value, ci and n
DATA_KEYS = tuple(f.name for f in dataclasses.fields(DataConfig))


@dataclass(frozen=True)
class AttackContext:
    """Input of an attack: an unlearned run, the output folder of the attack, and settings of the evaluation."""

    run: Run
    suite: str
    folder: Path
    plain: dict[str, Lines]  # metrics of the suite before the attack, by role
    limit: int | None = None
    batch_size: int = 64
    overrides: dict[str, Any] = field(default_factory=dict)

    @property
    def config(self) -> dict[str, Any]:
        """Return the configuration of the run with the overrides of this attack applied."""
        return {**self.run.config, **self.overrides}

    @property
    def models(self) -> dict[str, str]:
        """Return the models to attack by role: ``unlearned``, and ``oracle`` (of several, the first) if any."""
        oracles = oracle_names(self.config.get("oracle"))
        return {"unlearned": str(self.run.path)} | ({"oracle": oracles[0]} if oracles else {})

    def measure(self, name: str, **changes: Any) -> Lines:
        """Evaluate one attacked model with the suite of the attack; ``changes`` replace configuration keys of the run.
        Metrics that compare with the oracle or the target use these two models as they were before the attack.
        """
        # Use the precision of the run, as in the evaluation before the attack.
        run_keys = (*DATA_KEYS, *PRECISION, "attn_implementation", "use_cpu")
        arguments = {key: self.config[key] for key in run_keys if self.config.get(key) is not None}
        arguments = {**arguments, **changes}
        arguments.pop("train", None)
        if (Path(name) / "adapter").is_dir():
            # Pass the adapter, because the results in its run belong to the model before the attack.
            name = str(Path(name) / "adapter")
        target = {"target": self.config["model_name_or_path"], "target_revision": self.config.get("model_revision")}
        others = {**target, "oracle": self.config.get("oracle")}
        # keep=False: if the oracle is a full model in a run, its results must not be overwritten.
        results = evaluate(
            name, self.suite, **others, limit=self.limit, batch_size=self.batch_size, quiet=True, keep=False,
            records=self.folder / "records", **arguments,
        )  # fmt: skip
        (suite,) = results["suites"].values()
        return lines_of(suite, "unlearned")


def lines_of(suite: dict[str, Any], role: str) -> Lines:
    """Return value, confidence interval and row count of each metric for one model; empty if it was not measured."""
    lines = {name: line if role == "unlearned" else line[role] for name, line in suite["metrics"].items()}
    if role == "oracle":
        # Of several oracles, the first is attacked, and their mean has no attacked counterpart.
        lines |= {
            name: {**line["oracle"], "value": line["oracles"][0], "ci": None}
            for name, line in suite["metrics"].items()
            if "oracles" in line
        }
    return {name: {key: line[key] for key in ("value", "ci", "n")} for name, line in lines.items() if line is not None}
