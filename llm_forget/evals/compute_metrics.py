"""Compute the lines (named metrics) of a suite from the records of its probes, in the order of the suite file."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np

from llm_forget.core.run_directory import oracle_roles
from llm_forget.evals.records import by_row, row_subjects
from llm_forget.evals.stats import Estimate, Rows, Summary, mean_with_interval
from llm_forget.evals.suite import Line, Suite

Value = Rows | float | Estimate  # a number per row, a number for the split, or a number with its interval


class Scores(NamedTuple):
    """The values of rows, with the ids and the subjects of the rows, in the same order."""

    ids: list[str]
    values: Rows
    subjects: list[str]


@dataclass(frozen=True)
class Computed:
    """The value of a line for one model, and the scores of the rows that the value was computed from."""

    value: Value
    summary: Summary
    rows: dict[str, Scores] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the summary for JSON. NaN (unscored) and infinity become null."""
        ci = self.summary.ci
        return {**asdict(self.summary), "value": _number(self.summary.value), "ci": list(ci) if ci else None}

    def rows_to_dict(self) -> dict[str, Any]:
        """Return the ids and scores of the rows for JSON."""
        return {
            name: {"ids": scores.ids, "values": [_number(float(value)) for value in scores.values]}
            for name, scores in self.rows.items()
        }


Computation = dict[str, Computed]
ModelValues = tuple[dict[str, Any], Computation]  # of one model: probe name -> records, and line name -> value


def compute_lines(
    suite: Suite, records: dict[str, Any], others: dict[str, ModelValues] | None = None, *, role: str = "unlearned"
) -> Computation:
    """Compute every line of a suite for one model, the model of ``role``, and return the lines by name.

    Args:
        records: records of the model by probe name, and results of lm-eval tasks by line name.
        others: records and lines of the other models by role: ``before`` (the model before unlearning) and oracles.
            Metric inputs called ``before_...`` and ``oracle_...`` are read from them.

    A line that needs a missing model is unscored; an optional input of a missing model is left out. Without other
    oracles, an oracle reads the inputs ``oracle_...`` from itself. With several oracles, the value is the mean over
    them, and an oracle is compared with the other oracles only. Intervals resample the subjects of the rows; a row
    without a subject is its own subject.
    """
    lines: Computation = {}
    models = {**(others or {}), role: (records, lines)}
    for line in suite.lines:
        values = [_value(line, records, lines, compared) for compared in _compared_models(line, models, role)]
        if any(value is None for value in values):
            lines[line.name] = Computed(math.nan, Summary(math.nan, None, 0, 0))
            continue
        value = _mean([value for value in values if value is not None])
        rows = _rows(value, line, records, lines)
        lines[line.name] = Computed(value, _summary(value, line, lines, rows), rows)
    for task in suite.tasks:
        result = records[task.name]
        interval = tuple(result["ci"]) if result["ci"] else None
        unscored = result["value"] is None
        value = math.nan if unscored else result["value"]
        n, n_unscored = (0, result["n"]) if unscored else (result["n"], 0)
        lines[task.name] = Computed(value, Summary(value, interval, n, n_unscored))
    return lines


def _compared_models(line: Line, models: dict[str, ModelValues], role: str) -> list[dict[str, ModelValues]]:
    """Return the models to compare with, by ``oracle`` and ``before``: one mapping per oracle that the line reads."""
    before = {name: model for name, model in models.items() if name == "before"}
    oracles = oracle_roles(models)
    others = [name for name in oracles if name != role] if len(oracles) > 1 else oracles
    if not others or not line.reads("oracle"):
        return [before]
    return [{**before, "oracle": models[name]} for name in others]


def _value(line: Line, records: dict[str, Any], lines: Computation, compared: dict[str, ModelValues]) -> Value | None:
    """Return the value of a line; None if the line needs a model that is not in ``compared``."""
    available = {
        name: other
        for name, other in line.other_inputs.items()
        if _has_values(line.inputs[other[1]], compared.get(other[0]))
    }
    if line.other_inputs.keys() - available.keys() - line.metric.optional:
        return None
    inputs = {name: _resolve(reference, records, lines) for name, reference in line.inputs.items()}
    for name, (other, same) in available.items():
        inputs[name] = _resolve(line.inputs[same], *compared[other])
    return line.metric.function(**inputs, **line.arguments)


def _mean(values: Sequence[Value]) -> Value:
    """Return the mean of a line's values, one for each oracle. Row values and interval ends are averaged, too."""
    first = values[0]
    if len(values) == 1:
        return first
    if not isinstance(first, Estimate):
        return np.mean(np.asarray(values, dtype=np.float64), axis=0)[()]  # [N], or a number
    estimates = [value for value in values if isinstance(value, Estimate)]
    intervals = [estimate.ci for estimate in estimates if estimate.ci is not None]
    ci = None
    if len(intervals) == len(estimates):
        low, high = np.mean(intervals, axis=0).tolist()
        ci = (low, high)
    return Estimate(
        float(np.mean([estimate.value for estimate in estimates])),
        ci,
        min(estimate.n for estimate in estimates),
        max(estimate.n_unscored for estimate in estimates),
        {name: np.mean([estimate.rows[name] for estimate in estimates], axis=0) for name in first.rows},
    )


def _has_values(reference: str | list[str], model: ModelValues | None) -> bool:
    names = reference if isinstance(reference, list) else [reference]
    return model is not None and all(name in model[0] or name in model[1] for name in names)


def _resolve(reference: str | list[str], records: dict[str, Any], lines: Computation) -> Any:
    if isinstance(reference, list):
        return [_resolve(name, records, lines) for name in reference]
    value = records[reference] if reference in records else lines[reference].value
    return value.value if isinstance(value, Estimate) else value


def _summary(value: Value, line: Line, above: Computation, rows: Mapping[str, Scores]) -> Summary:
    """Return the mean of row values with its interval, or a single number with the least ``n`` of the lines it uses."""
    if isinstance(value, Estimate):
        return Summary(value.value, value.ci, value.n, value.n_unscored)
    if isinstance(value, np.ndarray):
        return mean_with_interval(value, rows["rows"].subjects)
    names = [name for r in line.inputs.values() for name in (r if isinstance(r, list) else [r])]
    parts = [above[name].summary for name in names if name in above]
    n = min((part.n for part in parts), default=0)
    return Summary(float(value), None, n, sum(part.n_unscored for part in parts))


def _rows(value: Value, line: Line, records: dict[str, Any], above: Computation) -> dict[str, Scores]:
    if isinstance(value, Estimate):
        return {name: _scores(rows, line.inputs[name], records, above) for name, rows in value.rows.items()}
    if isinstance(value, np.ndarray):
        return {"rows": _scores(value, next(iter(line.inputs.values())), records, above)}
    return {}


def _scores(values: Rows, reference: str | list[str], records: dict[str, Any], above: Computation) -> Scores:
    """Return the values with the ids and subjects of the rows of the probe or line called ``reference``."""
    name = reference if isinstance(reference, str) else reference[0]
    if name in records:
        return Scores(list(by_row(records[name])), values, row_subjects(records[name]))
    return next(iter(above[name].rows.values()))._replace(values=values)


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
