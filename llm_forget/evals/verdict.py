"""Bounds on lines (named metrics) of a suite, and the verdict, such as `forgot: yes`, that follows from them.

A bound is read from the ``verdict`` of a suite or the rules of a policy::

    {line: forget_probability, at_most: 1.5, of: oracle}     # at most 1.5 times the oracle's value
    {line: extraction_strength, within: 0.05, of: oracle}    # at most 0.05 above or below the oracle's value
    {line: mia_min_k, within: 0.1, of: 0.5, interval: true}  # the whole interval in [0.4, 0.6]: an equivalence test
    {line: forget_quality, at_least: 0.05, min_n: 40}        # inconclusive if fewer than 40 rows are scored
    {line: forget_probability, at_most: 1.5, of: oracle, slack: 0.02}    # at most 1.5 times the oracle's value + 0.02
    {line: forget_probability, within_oracles: 1.25}    # from the oracles' mean at most 1.25 times their spread
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from llm_forget.core.errors import EvaluationError
from llm_forget.core.registry import did_you_mean
from llm_forget.core.text import shown
from llm_forget.evals.oracles import spread

KINDS = ("at_most", "at_least", "within", "within_oracles")
MODELS = ("oracle", "before")
ONE_ORACLE = (
    "one oracle has no distance; name two that differ in their seed, as in oracle: [runs/oracle-0, runs/oracle-1]"
)
KEYS = ("line", "of", "interval", "min_n", "slack", *KINDS)


@dataclass(frozen=True)
class Bound:
    """A condition on the value of a line: absolute, or relative to a number or to the value of another model."""

    line: str
    kind: str  # at_most | at_least | within | within_oracles
    # The limit; with `of`: a factor of that value (at_most, at_least), a distance from it (within), or a factor of
    # the largest distance between two oracles (within_oracles).
    amount: float
    of: str | float | None = None  # oracle | before | a number
    interval: bool = False  # the whole 95 % interval must satisfy the bound, not only the value
    min_n: int = 0  # the bound is inconclusive if fewer rows are scored
    slack: float = 0.0  # widens a relative limit, because a factor of a tiny value is tiny

    def limits(self, other: float, spread: float = 0.0) -> tuple[float, float]:
        """Return the lowest and the highest value that satisfy the bound if the value to compare with is ``other``.

        ``spread`` is the largest distance between two oracles, for ``within_oracles``.
        """
        if self.kind == "within_oracles":
            distance = self.amount * spread + self.slack
            return other - distance, other + distance
        if self.kind == "within":
            return other - self.amount, other + self.amount
        limit = self.amount * other
        return (-math.inf, limit + self.slack) if self.kind == "at_most" else (limit - self.slack, math.inf)

    def __str__(self) -> str:
        """Return the bound in words, such as ``at most 1.5 times`` or ``interval within 0.1``."""
        words = f"{self.kind.replace('_', ' ')} {self.amount:g}"
        times = " times" if self.of is not None and self.kind != "within" else ""
        if self.kind == "within_oracles":
            words, times = f"within {self.amount:g}", " times the distance between oracles"
        times += f" {'-' if self.kind == 'at_least' else '+'} {self.slack:g}" if self.slack else ""
        return f"{'interval ' if self.interval else ''}{words}{times}"


@dataclass(frozen=True)
class Finding:
    """The result of applying a bound. If the bound is inconclusive, ``holds`` is None and ``why`` states the reason."""

    bound: Bound
    value: float | None
    compared_with: float | None
    holds: bool | None
    why: str = ""
    spread: float | None = None  # largest distance between two oracles, if the bound uses it

    def sentence(self) -> str:
        """Return text such as ``forget_probability 0.150 (oracle 0.140; at most 1.5 times)``."""
        other = "" if self.bound.of is None else f"{self.bound.of} {shown(self.compared_with)}; "
        if isinstance(self.bound.of, float):
            other = f"around {self.bound.of:g}; "
        why = f": {self.why}" if self.why else ""
        distance = "" if self.spread is None else f", {shown(self.spread)}"
        return f"{self.bound.line} {shown(self.value)} ({other}{self.bound}{distance}){why}"

    def to_dict(self) -> dict[str, Any]:
        """Return the bound and its result for JSON."""
        rest = {"value": self.value, "compared_with": self.compared_with, "holds": self.holds, "why": self.why}
        return {**asdict(self.bound), **rest, "sentence": self.sentence()}


def parse_bound(content: Any, where: str, *, extra_keys: Iterable[str] = ()) -> Bound:
    """Check one bound of a suite or a policy and return it. ``where`` names its place in error messages.

    Raises EvaluationError for an unknown key, for none or several of `KINDS`, or for a value of the wrong type.
    """
    if not isinstance(content, dict) or not isinstance(content.get("line"), str):
        raise EvaluationError(f"{where} must name a line, e.g. {{line: forget_quality, at_least: 0.05}}")
    where = f"{where}: '{content['line']}'"
    for key in content:
        if key not in (allowed := (*KEYS, *extra_keys)):
            raise EvaluationError(f"{where} has no key '{key}'; {did_you_mean(str(key), allowed)}")
    kinds = [kind for kind in KINDS if kind in content]
    if len(kinds) != 1:
        raise EvaluationError(f"{where} must have exactly one of {', '.join(KINDS)}")
    of = content.get("of", "oracle" if kinds == ["within_oracles"] else None)
    if kinds == ["within_oracles"] and of != "oracle":
        raise EvaluationError(f"{where}: 'within_oracles' is relative to the oracles; remove 'of'")
    if of is not None and of not in MODELS and not _is_number(of):
        raise EvaluationError(f"{where}: 'of' must be oracle, before or a number, not {of!r}")
    if kinds[0] == "within" and of is None:
        raise EvaluationError(f"{where}: 'within' is a distance and needs a reference, e.g. 'of: oracle' or 'of: 0.5'")
    amount, interval, min_rows = content[kinds[0]], content.get("interval", False), content.get("min_n", 0)
    slack = content.get("slack", 0.0)
    for key, value in ((kinds[0], amount), ("slack", slack)):
        if not _is_number(value):
            raise EvaluationError(f"{where}: '{key}' must be a number, not {value!r}")
    if kinds[0].startswith("within") and amount <= 0:
        raise EvaluationError(f"{where}: '{kinds[0]}' is a distance and must be above 0, not {amount!r}")
    if "slack" in content and kinds[0] == "within":
        raise EvaluationError(f"{where}: 'within' is a distance; remove 'slack'")
    if not isinstance(interval, bool):
        raise EvaluationError(f"{where}: 'interval' must be true or false, not {interval!r}")
    if isinstance(min_rows, bool) or not isinstance(min_rows, int):
        raise EvaluationError(f"{where}: 'min_n' must be a whole number, not {min_rows!r}")
    of = float(of) if isinstance(of, int) else of
    return Bound(content["line"], kinds[0], float(amount), of, interval, min_rows, float(slack))


def apply_bound(bound: Bound, line: Mapping[str, Any] | None) -> Finding:
    """Apply a bound to a line of results.json, which has ``value``, ``ci``, ``n`` and the lines of the other models.

    The result is inconclusive if the line or the compared value is missing, or if fewer than ``min_n`` rows are scored.
    A bound on the interval is also inconclusive if the interval is missing or crosses a limit. A bound on the distance
    between oracles is also inconclusive if that distance is unknown or cannot be a limit for the line.
    """
    if line is None:
        return Finding(bound, None, None, None, "not measured")
    value, compared = line["value"], bound.of
    if isinstance(bound.of, str):
        compared = (line.get(bound.of) or {}).get("value")
    assert not isinstance(compared, str)
    if value is None:
        return Finding(bound, value, compared, None, "unscored")
    if bound.of is not None and compared is None:
        return Finding(bound, value, None, None, f"no value of {bound.of}")
    if line["n"] < bound.min_n:
        return Finding(bound, value, compared, None, f"{line['n']} rows, {bound.min_n} needed")
    between = spread(line) if bound.kind == "within_oracles" else None
    if bound.kind == "within_oracles" and (why := _why_no_distance(bound, line, between)):
        return Finding(bound, value, compared, None, why)
    holds, why = _holds(bound, line, *bound.limits(1.0 if compared is None else compared, between or 0.0))
    return Finding(bound, value, compared, holds, why, between)


def _why_no_distance(bound: Bound, line: Mapping[str, Any], between: float | None) -> str:
    """Return why the distance between oracles cannot be a limit for a line; an empty text if it can."""
    if between is None:
        return ONE_ORACLE
    if line.get("between_oracles") is not None:
        return "the line is itself a distance to the oracles; use at_most or at_least with 'of: oracle'"
    return "the oracles are equal on this line; set slack" if between == 0 and not bound.slack else ""


def _holds(bound: Bound, line: Mapping[str, Any], low: float, high: float) -> tuple[bool | None, str]:
    """Return (holds, reason): whether the value or its interval is within the limits; (None, reason) if undecided."""
    if not bound.interval:
        return low <= line["value"] <= high, ""
    if line["ci"] is None:
        return None, "no interval"
    least, most = line["ci"]
    if low <= least and most <= high:
        return True, ""
    if most < low or least > high:
        return False, ""
    return None, f"the interval {least:.3f} to {most:.3f} crosses the limit"


def verdict_answer(findings: Iterable[Finding]) -> str:
    """Return ``no`` if a bound is violated, ``yes`` if all bounds hold, else (or without bounds) ``inconclusive``."""
    outcomes = [finding.holds for finding in findings]
    if False in outcomes:
        return "no"
    return "yes" if outcomes and all(outcomes) else "inconclusive"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
