"""The input of every attack: the run, its models, and a method that evaluates an attacked model."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llm_forget.core.config import DataConfig
from llm_forget.core.run_directory import Run, oracle_names
from llm_forget.models.digest import PRECISION
from llm_forget.workflows.evaluate import evaluate

Lines = dict[str, dict[str, Any]]  # metric name -> value, ci (95 % interval) and n (scored rows)
DATA_KEYS = tuple(f.name for f in dataclasses.fields(DataConfig))


@dataclass(frozen=True)
class AttackContext:
    """Input of an attack: the unlearned run, the output folder of the attack, and settings of the evaluation."""

    run: Run
    suite: str  # name or file of the suite to measure
    folder: Path  # output folder of the attack
    plain: dict[str, Lines]  # role -> metrics of the suite before the attack
    limit: int | None = None  # maximum number of rows per probe; None: all rows
    batch_size: int = 64
    overrides: dict[str, Any] = field(default_factory=dict)  # recipe keys that replace those of the run

    @property
    def config(self) -> dict[str, Any]:
        """Configuration of the run, with ``overrides`` applied."""
        return {**self.run.config, **self.overrides}

    @property
    def models(self) -> dict[str, str]:
        """Models to attack by role, as paths or Hub names: ``unlearned``, and the run's first ``oracle``, if any."""
        oracles = oracle_names(self.config.get("oracle"))
        return {"unlearned": str(self.run.path)} | ({"oracle": oracles[0]} if oracles else {})

    def measure(self, name: str, **changes: Any) -> Lines:
        """Evaluate the attacked model ``name`` (path or Hub name) with the suite, and return its metrics.

        ``changes`` replace configuration keys of the run. Metrics that compare the model with the oracle or the target
        (the model before unlearning) use the oracle and the target without the attack.
        """
        # Use the precision of the run, as in the evaluation before the attack.
        run_keys = (*DATA_KEYS, *PRECISION, "attn_implementation", "use_cpu")
        arguments = {key: self.config[key] for key in run_keys if self.config.get(key) is not None}
        arguments = {**arguments, **changes}
        arguments.pop("train", None)
        if (Path(name) / "adapter").is_dir():
            # Pass the adapter, not its run: results in the run are those of the model before the attack.
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
    """Return the metrics of the model of ``role`` in a suite of results.json; empty if the model was not measured."""
    lines = {name: line if role == "unlearned" else line[role] for name, line in suite["metrics"].items()}
    if role == "oracle":
        # Of several oracles, only the first is attacked: use its values, not the mean over the oracles.
        lines |= {
            name: {**line["oracle"], "value": line["oracles"][0], "ci": None}
            for name, line in suite["metrics"].items()
            if "oracles" in line
        }
    return {name: {key: line[key] for key in ("value", "ci", "n")} for name, line in lines.items() if line is not None}
