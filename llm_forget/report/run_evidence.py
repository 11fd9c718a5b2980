"""Read the results of a run from its directory as plain data."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llm_forget.core import formats
from llm_forget.core.errors import RunError
from llm_forget.core.formats.results import RowScores, Verification
from llm_forget.core.formats.run import LogLine
from llm_forget.core.run_directory import Run, oracle_names
from llm_forget.evals.policy import is_current
from llm_forget.evals.records import load_records
from llm_forget.evals.results_file import read_attacks, read_results
from llm_forget.evals.stats import Rows


@dataclass(frozen=True)
class Evidence:
    """Results, logs and provenance of an evaluated run; missing files are empty or None."""

    name: str
    run: Run
    results: dict[str, Any]
    rows: dict[str, Any]  # suite -> metric -> role -> name -> {"ids", "values"}
    log: list[dict[str, Any]]  # metrics.jsonl
    provenance: dict[str, Any]
    attacks: dict[str, dict[str, Any]]  # attack name -> attack.json
    verification: dict[str, Any] | None  # verify.json
    oracle: dict[str, Any] | None  # provenance of the run that trained the oracle, if found

    @property
    def suites(self) -> dict[str, Any]:
        """Results by suite name."""
        return self.results["suites"]

    @property
    def verification_is_current(self) -> bool:
        """Whether the verification is of the present results and attacks, not of earlier ones."""
        return self.verification is not None and is_current(self.verification, self.suites, self.attacks)

    def has(self, role: str) -> bool:
        """Return whether the model of this role was measured."""
        return self.results["models"].get(role) is not None

    def scores(self, suite: str, line: str, role: str, name: str = "rows") -> tuple[list[str], Rows] | None:
        """Return row ids and values ``[N]`` of a metric, NaN for unscored rows; None if rows.json lacks the metric."""
        row_scores = self.rows.get(suite, {}).get(line, {}).get(role, {}).get(name)
        if row_scores is None:
            return None
        return row_scores["ids"], np.array([np.nan if v is None else v for v in row_scores["values"]], dtype=np.float64)


def read_run(path: str | Path, name: str | None = None) -> Evidence:
    """Read a run; raise RunError if it is missing, unfinished, or not evaluated by this version."""
    run = Run.open(path)
    results = read_results(run)
    return Evidence(
        name=name or run.path.resolve().name, run=run, results=results, rows=_content(run.rows_file, RowScores) or {},
        log=_log(run.metrics_file), provenance=run.provenance if run.provenance_file.is_file() else {},
        attacks=read_attacks(run), verification=_content(run.path / "verify.json", Verification),
        oracle=_oracle_provenance(run, results),
    )  # fmt: skip


def read_runs(paths: Sequence[str | Path]) -> list[Evidence]:
    """Read several runs, each named by its folder, with parent folders if two names would be equal.

    Raises RunError if ``paths`` is empty or has duplicates, or if a run cannot be read (see `read_run`).
    """
    folders = [Path(path).resolve() for path in paths]
    if not folders:
        raise RunError("no run was given; name at least one run directory")
    repeated = next((paths[i] for i, folder in enumerate(folders) if folder in folders[:i]), None)
    if repeated is not None:
        raise RunError(f"run '{repeated}' is given twice; name each run once")
    depth = 1
    while len({folder.parts[-depth:] for folder in folders}) < len(folders):
        depth += 1
    names = ["/".join(folder.parts[-depth:]) for folder in folders]
    return [read_run(path, name) for path, name in zip(paths, names, strict=True)]


def generated_texts(evidence: Evidence, count: int) -> list[tuple[str, str]]:
    """Return row id and generated text of up to ``count`` rows of the unlearned model, of forget rows if possible.

    Raises RunError if the run holds no generated text.
    """
    files = (evidence.run.records / "unlearned").glob("*.jsonl")
    for file in sorted(files, key=lambda file: ("forget" not in file.name, file.name)):
        if (records := load_records(file, kind="generate")) is not None:
            return [(record.id, record.text) for record in records[:count]]
    raise RunError(f"run '{evidence.run.path}' holds no generated text; leave out --show_text")


def _content(file: Path, kind: type[formats.Record]) -> Any:
    return formats.read_content(file, kind) if file.is_file() else None


def _log(file: Path) -> list[dict[str, Any]]:
    return list(formats.whole_lines(file.read_bytes().splitlines(), LogLine)) if file.is_file() else []


def _oracle_provenance(run: Run, results: dict[str, Any]) -> dict[str, Any] | None:
    """Return the provenance of the first oracle's run; look at the path in the recipe, then beside this run."""
    paths = oracle_names(run.config.get("oracle")) if run.config_file.is_file() else []
    measured = results["models"].get("oracle")
    if not paths or measured is None:
        return None
    for folder in (Path(paths[0]), run.path.resolve().parent / Path(paths[0]).name):
        oracle_run = Run(folder)
        # Compare names, because --oracle may have overridden the recipe's oracle.
        if folder.resolve().name == measured["name"] and oracle_run.complete and oracle_run.provenance_file.is_file():
            return oracle_run.provenance
    return None
