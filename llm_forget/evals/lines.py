"""From records to numbers: the lines of a suite, computed top to bottom, and the verdict on them."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from llm_forget.evals.stats import Rows, Summary, mean_with_interval
from llm_forget.evals.suite import ORACLE, Bound, Line, Suite

Value = Rows | float  # one number per row, or one for the split


@dataclass(frozen=True)
class Computed:
    """A line's value for one model."""

    value: Value
    summary: Summary

    def to_dict(self) -> dict[str, Any]:
        """JSON form; NaN (unscored) and infinity, which JSON cannot write, become null."""
        content = asdict(self.summary)
        return {
            **content,
            "value": _number(self.summary.value),
            "ci": list(self.summary.ci) if self.summary.ci else None,
        }


Computation = dict[str, Computed]


def compute_lines(
    suite: Suite, records: dict[str, Any], oracle: Computation | None = None, *, is_oracle: bool = False
) -> Computation:
    """Every line of a suite for one model.

    Args:
        suite: the lines.
        records: of each probe, by its name.
        oracle: the oracle's own computation, for inputs named ``oracle_...``; without one such lines are unscored.
        is_oracle: the records are the oracle's, whose ``oracle_...`` inputs are its own.
    """
    lines: Computation = {}
    for line in suite.lines:
        source = lines if is_oracle else oracle
        if line.oracle_inputs and source is None:
            lines[line.name] = Computed(math.nan, Summary(math.nan, None, 0, 0))
            continue
        inputs = {name: _resolve(reference, records, lines) for name, reference in line.inputs.items()}
        for name in line.oracle_inputs:
            assert source is not None
            inputs[name] = _resolve(line.inputs[name.removeprefix(ORACLE)], {}, source)
        value = line.metric.function(**inputs, **line.arguments)
        lines[line.name] = Computed(value, _summary(value, line, lines))
    return lines


def _resolve(reference: str | list[str], records: dict[str, Any], lines: Computation) -> Any:
    if isinstance(reference, list):
        return [_resolve(one, records, lines) for one in reference]
    return records[reference] if reference in records else lines[reference].value


def _summary(value: Value, line: Line, above: Computation) -> Summary:
    """Rows get a mean and an interval; a single number rests on the smallest count among the lines it is made of."""
    if isinstance(value, np.ndarray):
        return mean_with_interval(value)
    names = [n for given in line.inputs.values() for n in (given if isinstance(given, list) else [given])]
    parts = [above[name].summary for name in names if name in above]
    n = min((part.n for part in parts), default=0)
    return Summary(float(value), None, n, sum(part.n_unscored for part in parts))


@dataclass(frozen=True)
class Finding:
    """One bound of the verdict, applied. ``holds`` is None when it cannot be told."""

    bound: Bound
    value: float
    compared_with: float | None
    holds: bool | None

    def sentence(self) -> str:
        """``forget_probability 0.150 (oracle 0.140; at most 1.5 times)``."""
        bound = f"{self.bound.kind.replace('_', ' ')} {self.bound.amount:g}"
        if self.bound.of is None:
            return f"{self.bound.line} {shown(self.value)} ({bound})"
        times = "" if self.bound.kind == "within" else " times"
        return f"{self.bound.line} {shown(self.value)} ({self.bound.of} {shown(self.compared_with)}; {bound}{times})"

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        compared = None if self.compared_with is None else _number(self.compared_with)
        return {
            **asdict(self.bound),
            "value": _number(self.value),
            "compared_with": compared,
            "holds": self.holds,
            "sentence": self.sentence(),
        }


def judge(
    suite: Suite, unlearned: Computation, before: Computation | None, oracle: Computation | None
) -> dict[str, list[Finding]]:
    """Apply the verdict of a suite; a bound on a model that is not there, or on an unscored line, is inconclusive."""
    others = {"before": before, "oracle": oracle}
    return {
        question: [_apply(bound, unlearned, others[bound.of] if bound.of else None) for bound in bounds]
        for question, bounds in suite.verdict.items()
    }


def answer(findings: list[Finding]) -> str:
    """``no`` as soon as one bound is broken, ``inconclusive`` when one cannot be told, otherwise ``yes``."""
    if any(finding.holds is False for finding in findings):
        return "no"
    return "yes" if findings and all(finding.holds for finding in findings) else "inconclusive"


def _apply(bound: Bound, unlearned: Computation, other: Computation | None) -> Finding:
    value = unlearned[bound.line].summary.value
    compared = other[bound.line].summary.value if other is not None else None
    if math.isnan(value) or (bound.of is not None and (compared is None or math.isnan(compared))):
        return Finding(bound, value, compared, None)
    scale = 1.0 if compared is None else compared
    if bound.kind == "within":
        return Finding(bound, value, compared, abs(value - scale) <= bound.amount)
    limit = bound.amount * scale
    return Finding(bound, value, compared, value <= limit if bound.kind == "at_most" else value >= limit)


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def shown(value: float | None) -> str:
    """Three decimals, or a power of ten where those would be 0."""
    if value is None or math.isnan(value):
        return "unknown"
    return f"{value:.3f}" if abs(value) >= 0.001 or value == 0 else f"{value:.1e}"
