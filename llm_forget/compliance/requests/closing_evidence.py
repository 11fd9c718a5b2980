"""What a deletion request is closed with: a run, or a model that was merged from it, and its measured results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_forget.compliance.ledger.record_runs import weights_of
from llm_forget.core.errors import EvidenceError
from llm_forget.core.run_directory import Run
from llm_forget.core.run_kinds import kind_of
from llm_forget.evals.policy import RuleResult, apply_rules, load_policy, outcome, verify
from llm_forget.evals.results_file import is_measured, read_results
from llm_forget.models.merging.merge_report import Merged, is_merged, read_merged


@dataclass(frozen=True)
class Closer:
    """What a request is closed with."""

    run: Run  # forgot the rows, or was retrained without them, or learned them and was taken away
    made: str  # content digest of its model
    merged: Merged | None = None  # what is certified, where that is not the run itself

    @property
    def name(self) -> str:
        return self.merged.name if self.merged else self.run.path.resolve().name

    @property
    def weights(self) -> str:
        """Content digest of what is certified."""
        return self.merged.weights if self.merged else self.made

    @property
    def taken_away(self) -> bool:
        """Whether the run learned the rows, and its change of the weights was subtracted (arXiv:2212.04089)."""
        return self.merged is not None and (self.merged.scale_of(self.made) or 0.0) < 0

    @property
    def measured(self) -> Run:
        """Where results.json must lie."""
        return Run(self.merged.folder) if self.merged else self.run


def closer_of(run: Path, merged: str | Path | None) -> Closer:
    """A finished run, and what was merged from it, as they were written.

    Raises:
        ValueError: no finished run, or a folder that was not merged from it, or takes its forgetting away.
        AdapterRefused: weights that are not those that were written.
    """
    finished = Run.open(run)
    made = weights_of(finished)
    if merged is None:
        return Closer(finished, made)
    if not is_merged(Path(merged)):
        raise EvidenceError(
            f"'{merged}' has no merge.json; `llm-forget merge {run} --output_dir DIR` writes such a folder"
        )
    found = read_merged(Path(merged))
    scale = found.scale_of(made)
    if scale is None or (scale < 0 and kind_of(finished).forgotten):
        what = "was not merged from" if scale is None else f"takes away (scale {scale:g}) what was forgotten by"
        raise EvidenceError(f"'{merged}' {what} run '{run}'; name the run that forgot the rows and went into it")
    return Closer(finished, made, found)


def verified(closer: Closer, policy: str | Path) -> tuple[str, list[RuleResult], dict[str, Any]]:
    """A policy's answer on the results of what is certified, what became of each rule, and these results.

    Raises:
        ValueError: it was not measured, or the results are of other weights than lie there.
    """
    if closer.merged is None:
        said, found = verify(closer.run.path, policy)
        results = read_results(closer.run)
        _refuse_other_weights(closer.run, results)
        _refuse_rows_by_hand(closer.run, found, results)
        return said, found, results
    folder = closer.merged.folder
    if not closer.measured.results_file.is_file():
        raise EvidenceError(
            f"'{folder}' was not measured, and what it was merged from is another model: "
            f"{_measuring(closer.run, folder)}"
        )
    if not is_measured(closer.merged):
        raise EvidenceError(
            f"the results in '{folder}' are of other weights than lie there: {_measuring(closer.run, folder)}"
        )
    results = read_results(closer.measured)
    found = apply_rules(results, load_policy(policy))
    return outcome(found), found, results


def _measuring(run: Run, folder: Path) -> str:
    """What to do about a merged folder without results of its own."""
    from llm_forget.workflows.merge import closed_request, evaluate_command

    if (request := closed_request(run.config)) is not None:
        certified = (
            "measure with" if (folder / "run.json").is_file() else "it cannot be certified any more; look at it by"
        )
        return (
            f"the request that this run was made for, {request}, is closed and its list of rows removed; {certified} "
            f"`{evaluate_command(folder)}`"
        )
    return f"merge again with --measure, or of several runs with --as_adapter and then `{evaluate_command(folder)}`"


def _refuse_rows_by_hand(run: Run, found: Sequence[RuleResult], results: Mapping[str, Any]) -> None:
    """What a run was to forget is what its numbers must be about; a retrained one has no such rows of its own."""
    measured = {one.suite: results["suites"][one.suite] for one in found if one.suite is not None}
    by_hand = [suite for suite, content in measured.items() if "forget" in content.get("overrides", ())]
    if by_hand and kind_of(run).forgotten:
        raise EvidenceError(
            f"suite '{by_hand[0]}' of run '{run.path}' was measured with --forget on other rows than the run was to "
            f"forget; evaluate it again without: llm-forget evaluate {run.path} --suite {by_hand[0]}"
        )


def _refuse_other_weights(run: Run, results: Mapping[str, Any]) -> None:
    """The results must be of the weights that are there now, in the run's own precision."""
    from llm_forget.models.digest import run_identity

    if results["models"]["unlearned"] is None or run_identity(run).digest != results["models"]["unlearned"]["digest"]:
        raise EvidenceError(
            f"the results of run '{run.path}' are of other weights, or of another precision, than it holds; evaluate "
            f"it again: llm-forget evaluate {run.path}"
        )
