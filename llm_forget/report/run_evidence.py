"""A run directory as plain data."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llm_forget.core import formats
from llm_forget.core.digests import json_digest
from llm_forget.core.errors import RunError
from llm_forget.core.formats.results import Attack, RowScores, Verification
from llm_forget.core.run_directory import Run
from llm_forget.evals.records import FORMAT as RECORDS_FORMAT
from llm_forget.evals.results_file import read_results
from llm_forget.evals.stats import Rows


@dataclass(frozen=True)
class Evidence:
    """What a run left behind; what it lacks is empty or None."""

    name: str
    run: Run
    results: dict[str, Any]
    rows: dict[str, Any]  # suite -> line -> role -> name -> {"ids", "values"}
    log: list[dict[str, Any]]  # metrics.jsonl
    provenance: dict[str, Any]
    attacks: dict[str, dict[str, Any]]  # attack.json by the attack's name
    verification: dict[str, Any] | None  # verify.json
    oracle: dict[str, Any] | None  # provenance of the oracle's own run, where that is found

    @property
    def suites(self) -> dict[str, Any]:
        return self.results["suites"]

    @property
    def verified_as_it_is(self) -> bool:
        """Whether the policy was applied to these results, and not to those of an earlier evaluation."""
        return self.verification is not None and self.verification.get("results") == json_digest(self.suites)

    def has(self, role: str) -> bool:
        """Whether this model was measured."""
        return self.results["models"].get(role) is not None

    def scores(self, suite: str, line: str, role: str, name: str = "rows") -> tuple[list[str], Rows] | None:
        """Row ids and values of a line, ``[N]`` with NaN for unscored ones; None where they are not on disk."""
        found = self.rows.get(suite, {}).get(line, {}).get(role, {}).get(name)
        if found is None:
            return None
        return found["ids"], np.array([np.nan if v is None else v for v in found["values"]], dtype=np.float64)


def read_run(path: str | Path, name: str | None = None) -> Evidence:
    """A finished and measured run.

    Raises:
        ValueError: no run, an unfinished one, or one that was not measured by this version; says what to do.
    """
    run = Run.open(path)
    results = read_results(run)
    return Evidence(
        name=name or run.path.resolve().name,
        run=run,
        results=results,
        rows=_content(run.rows_file, RowScores) or {},
        log=_log(run.metrics_file),
        provenance=run.provenance if run.provenance_file.is_file() else {},
        attacks=_attacks(run.path / "attacks"),
        verification=_content(run.path / "verify.json", Verification),
        oracle=_oracle_provenance(run, results),
    )


def read_runs(paths: Sequence[str | Path]) -> list[Evidence]:
    """Several runs under names that tell them apart: as many folders of their paths as that takes.

    Raises:
        ValueError: no run, one given twice, or what `read_run` refuses.
    """
    folders = [Path(path).resolve() for path in paths]
    if not folders:
        raise RunError("no run is given; name at least one run directory")
    twice = next((paths[i] for i, folder in enumerate(folders) if folder in folders[:i]), None)
    if twice is not None:
        raise RunError(f"run '{twice}' is given twice; name each run once")
    depth = 1
    while len({folder.parts[-depth:] for folder in folders}) < len(folders):
        depth += 1
    names = ["/".join(folder.parts[-depth:]) for folder in folders]
    return [read_run(path, name) for path, name in zip(paths, names, strict=True)]


def generated_texts(evidence: Evidence, count: int) -> list[tuple[str, str]]:
    """Row ids and what the unlearned model said, of the first generating probe, that of forget rows if there is one.

    Raises:
        ValueError: the run holds no generations.
    """
    files = [file for file in sorted((evidence.run.records / "unlearned").glob("*.jsonl")) if _holds_text(file)]
    if not files:
        raise RunError(f"run '{evidence.run.path}' holds no generated text; leave out --show_text")
    file = min(files, key=lambda file: "forget" not in file.name)  # the first among equals
    with file.open(encoding="utf-8") as lines:
        records = [json.loads(line) for line in lines][1:]
    return [(str(record["id"]), str(record["text"])) for record in records[:count]]


def _holds_text(file: Path) -> bool:
    with file.open(encoding="utf-8") as lines:
        head = json.loads(lines.readline() or "{}")
    return head.get("kind") == "generate" and head.get("format") == RECORDS_FORMAT


def _content(file: Path, kind: type[formats.Record]) -> Any:
    return formats.read_content(file, kind) if file.is_file() else None


def _log(file: Path) -> list[dict[str, Any]]:
    if not file.is_file():
        return []
    # A killed run may have left half a line.
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.endswith("}")]


def _attacks(folder: Path) -> dict[str, dict[str, Any]]:
    found = {}
    for file in sorted(folder.glob("*/attack.json")):
        found[file.parent.name] = formats.read_content(file, Attack, advice="run the attack again")
    return found


def _oracle_provenance(run: Run, results: dict[str, Any]) -> dict[str, Any] | None:
    """Of the run that made the oracle: where the recipe says it is, or beside this run under that name."""
    given = run.config.get("oracle") if run.config_file.is_file() else None
    measured = results["models"].get("oracle")
    if given is None or measured is None:
        return None
    for folder in (Path(given), run.path.resolve().parent / Path(given).name):
        other = Run(folder)
        # --oracle may have replaced the recipe's.
        if folder.resolve().name == measured["name"] and other.complete and other.provenance_file.is_file():
            return other.provenance
    return None
