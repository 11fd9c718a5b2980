"""Open and verify the model that closes a deletion request (a run or a model merged from it), and apply a policy."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_forget.compliance.ledger.record_runs import weights_of
from llm_forget.core.errors import EvidenceError
from llm_forget.core.run_directory import Run
from llm_forget.core.run_kinds import kind_of
from llm_forget.evals.policy import RuleResult, apply_rules, load_policy, outcome, verify
from llm_forget.evals.results_file import current_attacks, is_measured, read_attacks, read_results
from llm_forget.models.merging.merge_report import Merged, is_merged, read_merged


@dataclass(frozen=True)
class ClosingEvidence:
    """The run that closes a request. If ``merged`` is set, the merged model is certified in place of the run."""

    run: Run  # it unlearned the rows, was retrained without them, or learned them and is subtracted in the merge
    run_weights: str  # content digest of the run's model
    merged: Merged | None = None

    @property
    def name(self) -> str:
        """Name of the certified model."""
        return self.merged.name if self.merged else self.run.path.resolve().name

    @property
    def weights(self) -> str:
        """Content digest of the certified model."""
        return self.merged.weights if self.merged else self.run_weights

    @property
    def subtracted(self) -> bool:
        """Whether the merge subtracts the run, which learned the rows (task arithmetic, arXiv:2212.04089)."""
        return self.merged is not None and (self.merged.scale_of(self.run_weights) or 0.0) < 0

    @property
    def measured_run(self) -> Run:
        """The folder with the certified model and its evaluation results, as a `Run`."""
        return Run(self.merged.folder) if self.merged else self.run


def closing_evidence(run: Path, merged: str | Path | None) -> ClosingEvidence:
    """Open a finished run and, if given, the model merged from it, and verify the weights of both.

    Raises:
        RunError: the run is incomplete.
        EvidenceError: the model was not merged from the run, or the merge subtracts a run that unlearned the rows.
        AdapterRefused: weights were changed since they were written.
    """
    finished = Run.open(run)
    run_weights = weights_of(finished)
    if merged is None:
        return ClosingEvidence(finished, run_weights)
    if not is_merged(Path(merged)):
        raise EvidenceError(
            f"'{merged}' has no merge.json; `llm-forget merge {run} --output_dir DIR` writes such a folder"
        )
    merged_model = read_merged(Path(merged))
    scale = merged_model.scale_of(run_weights)
    if scale is None or (scale < 0 and kind_of(finished).forgotten):
        problem = "was not merged from" if scale is None else f"subtracts (scale {scale:g}) the unlearning of"
        raise EvidenceError(
            f"'{merged}' {problem} run '{run}'; give the run that forgot the rows and was merged into it"
        )
    return ClosingEvidence(finished, run_weights, merged_model)


def apply_policy(evidence: ClosingEvidence, policy: str | Path) -> tuple[str, list[RuleResult], dict[str, Any]]:
    """Apply a policy to the certified model. Return the answer, the result of each rule, and the evaluation results.

    Raises EvidenceError if the model was not evaluated, or if its results are of other weights or other rows.
    """
    if evidence.merged is None:
        answer, rule_results = verify(evidence.run.path, policy)
        results = read_results(evidence.run)
        _refuse_other_weights(evidence.run, results)
        _refuse_other_measured_rows(evidence.run, rule_results, results)
        return answer, rule_results, results
    folder = evidence.merged.folder
    if not evidence.measured_run.results_file.is_file():
        raise EvidenceError(
            f"'{folder}' was not evaluated, and the run's results are of another model: "
            f"{_measuring_advice(evidence.run, folder)}"
        )
    if not is_measured(evidence.merged):
        raise EvidenceError(
            f"the results in '{folder}' are of other weights than it holds: {_measuring_advice(evidence.run, folder)}"
        )
    results = read_results(evidence.measured_run)
    rule_results = apply_rules(results, load_policy(policy), attacks_on(evidence, results))
    return outcome(rule_results), rule_results, results


def attacks_on(evidence: ClosingEvidence, results: Mapping[str, Any]) -> dict[str, Any]:
    """Return the current attacks on the certified model: the content of attack.json by folder name."""
    attacks = current_attacks(read_attacks(evidence.measured_run), results)
    return {**attacks, **_attacks_before_merging(evidence)} if evidence.merged else attacks


def _attacks_before_merging(evidence: ClosingEvidence) -> dict[str, Any]:
    """Return the current attacks on the run if it alone was merged, at scale 1, because then both models are equal.

    Otherwise return {}.
    """
    assert evidence.merged is not None
    merged_whole = len(evidence.merged.facts["sources"]) == 1 and evidence.merged.scale_of(evidence.run_weights) == 1
    if not merged_whole or not evidence.run.results_file.is_file():
        return {}
    return current_attacks(read_attacks(evidence.run), read_results(evidence.run))


def _measuring_advice(run: Run, folder: Path) -> str:
    """Return the end of an error message: how to evaluate a merged model without current results."""
    from llm_forget.workflows.merge import closed_request, evaluate_command

    if (request := closed_request(run.config)) is not None:
        certified = (
            "evaluate with" if (folder / "run.json").is_file() else "it can no longer be certified; inspect it with"
        )
        return (
            f"the request of this run, {request}, is closed and its list of rows removed; {certified} "
            f"`{evaluate_command(folder)}`"
        )
    return f"merge again with --measure, or of several runs with --as_adapter and then `{evaluate_command(folder)}`"


def _refuse_other_measured_rows(run: Run, rule_results: Sequence[RuleResult], results: Mapping[str, Any]) -> None:
    """Raise EvidenceError if an unlearning run was evaluated on other rows than it unlearned (option --forget)."""
    names = {rule.suite for rule in rule_results if rule.attack_name is None and rule.suite in results["suites"]}
    suites = {name: results["suites"][name] for name in sorted(filter(None, names))}
    overridden = [name for name, suite in suites.items() if "forget" in suite.get("overrides", ())]
    if overridden and kind_of(run).forgotten:
        raise EvidenceError(
            f"suite '{overridden[0]}' of run '{run.path}' was measured with --forget on other rows than the run "
            f"unlearned; evaluate again without it: llm-forget evaluate {run.path} --suite {overridden[0]}"
        )


def _refuse_other_weights(run: Run, results: Mapping[str, Any]) -> None:
    """Raise EvidenceError if the weights of the run, or their precision, changed since the evaluation."""
    from llm_forget.models.digest import run_identity

    if results["models"]["unlearned"] is None or run_identity(run).digest != results["models"]["unlearned"]["digest"]:
        raise EvidenceError(
            f"the results of run '{run.path}' are of other weights, or of another precision, than it holds; evaluate "
            f"it again: llm-forget evaluate {run.path}"
        )
