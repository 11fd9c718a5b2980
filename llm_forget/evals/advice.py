"""Advice to the user about a verdict: what to change after a *no*, and whether there was anything to forget."""

from collections.abc import Mapping
from typing import Any

from llm_forget.evals.metrics import metric_of

UNDER = (
    "under-forgotten: the forget rows are still more likely than rows that were never trained on; "
    "set stop_at: holdout, and train longer (twice num_train_epochs) or with a higher learning_rate"
)
OVER = (
    "over-forgotten: the forget rows are less likely than rows that were never trained on, which reveals them, too; "
    "set stop_at: holdout, or train with fewer epochs or a lower learning_rate"
)
LANGUAGE = (
    "garbled: answers to forget rows are no longer fluent, since the loss only says what not to say; "
    "use method distil with a teacher, e.g. teacher: {name: stranger}"
)
DAMAGED = (
    "damaged: other knowledge was lost; give the retain term a higher weight (method_args: {retain_weight: ...}) or "
    "more retain rows, or lower the learning_rate"
)


def advice(suites: Mapping[str, Any]) -> str | None:
    """Return a sentence with the most urgent fault and its remedy; None if no violated bound shows a fault.

    The order of urgency is: garbled, damaged, over-forgotten, under-forgotten. Inconclusive bounds do not count.
    ``suites`` is the part ``suites`` of results.json.
    """
    faults = {
        _fault(question, finding, _about_text(finding, suite["metrics"]))
        for suite in suites.values()
        for question, verdict in suite["verdict"].items()
        for finding in verdict["findings"]
        if finding["holds"] is False
    }
    return next((fault for fault in (LANGUAGE, DAMAGED, OVER, UNDER) if fault in faults), None)


def _fault(question: str, finding: Mapping[str, Any], about_text: bool) -> str | None:
    """Return the fault that a violated bound shows; None if the bound shows none, such as a bound on forget quality."""
    line, value, other = finding.get("line", ""), finding.get("value"), finding.get("compared_with")
    if question == "kept":
        return DAMAGED
    if about_text:
        return LANGUAGE
    if "privleak" in line:  # 0 at the oracle, and lower for rows that are remembered
        return UNDER if (value or 0.0) < (other or 0.0) else OVER
    if value is None or other is None:
        return UNDER if finding.get("kind") == "at_most" else None
    return UNDER if value > other else OVER


def nothing_to_forget(verdict: Mapping[str, Any], metrics: Mapping[str, Any]) -> bool:
    """Return whether a verdict that compares with the oracle is *yes* both before and after unlearning.

    A verdict counts only if it has a bound that is relative to the oracle and not about text quality. ``metrics`` are
    the metrics of the suite in results.json.
    """
    compared = [finding for finding in verdict["findings"] if finding["of"] == "oracle"]
    like_oracle = not all(_about_text(finding, metrics) for finding in compared)
    return like_oracle and verdict["answer"] == verdict.get("before") == "yes"


def _about_text(finding: Mapping[str, Any], metrics: Mapping[str, Any]) -> bool:
    """Return whether the finding of a bound is about a metric of text quality."""
    return metric_of(metrics.get(finding.get("line", ""), {})).about_text
