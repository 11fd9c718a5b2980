"""The section on training: log-probabilities of the splits, and the value of each term of the objective."""

from collections.abc import Sequence
from typing import Any

from llm_forget.core.text import shown
from llm_forget.report.render import charts
from llm_forget.report.render.document import Chart, Number, Row, Section, Table, anchor, first_rows
from llm_forget.report.run_evidence import Evidence

PREFIX = "logps/"
LEVELS = "levels/"  # prefix of log keys: scores of the forget rows that the two-sided stop measures
ROLE_OF_SPLIT = {"forget": "unlearned", "retain": "oracle", "train": "unlearned"}  # the colour and dashes of a split


def training_section(evidence: Evidence) -> Section:
    """Plot the mean log-probability per token of each split, and the value of each term of the objective."""
    keys = list(dict.fromkeys(key for line in evidence.log for key in line if "/" in key))
    splits = [key for key in keys if key.startswith(PREFIX)]
    terms = [key for key in keys if not key.startswith((PREFIX, LEVELS))]
    blocks = []
    if splits:
        title = "Log-probability per token"
        description = (
            "Mean log-probability of the answers' tokens in nats, per step of training; 0 is certainty. Forget rows "
            "should fall, retain rows should stay."
        )
        blocks.append(_curves(evidence, title, description, splits, "nats per token"))
    for term in terms:
        title = f"Term {term}"
        blocks.append(_curves(evidence, title, f"Value of the term {term} per step of training.", [term], "value"))
    blocks += [_level(evidence, name, holdout) for name, holdout in _calibration(evidence).get("holdout", {}).items()]
    return Section("Training", tuple(block for block in blocks if block is not None))


def _calibration(evidence: Evidence) -> dict[str, Any]:
    return evidence.provenance.get("calibration") or {}


def _level(evidence: Evidence, name: str, holdout: dict[str, float]) -> Chart | None:
    """Plot one level (a score such as extraction strength) of the forget rows during training, and the 95 % interval of
    the same level for rows that were never trained on. Return None if the level was not logged.
    """
    points = [
        (line["step"], line[f"{LEVELS}{name}"]) for line in evidence.log if line.get(f"{LEVELS}{name}") is not None
    ]
    if not points:
        return None
    kept_step, steps = _calibration(evidence)["kept_step"], [step for step, _ in points]
    title = f"Level {name}"
    description = (
        f"The {name} of the forget rows per step of training, between the limits of rows that were never trained on "
        f"(95 % interval, measured before training). The vertical line is the kept step, {kept_step}."
    )
    series = [charts.Series("forget", "unlearned", steps, [value for _, value in points])]
    series += [charts.Series(f"unseen, {end}", "oracle", steps, [holdout[end]] * len(steps)) for end in ("low", "high")]
    rows: list[Row] = [(str(step), Number(shown(value))) for step, value in points]
    svg = charts.lines(
        anchor("training", title, evidence.name), title, description, series,
        x_label="step", y_label=name, whole_x=True, mark_x=kept_step,
    )  # fmt: skip
    return Chart(title, description, svg, Table(title, ("step", "forget"), first_rows(rows)))


def _curves(evidence: Evidence, title: str, description: str, keys: Sequence[str], unit: str) -> Chart | None:
    logged = [line for line in evidence.log if any(line.get(key) is not None for key in keys)]
    if not logged:
        return None
    series = []
    for key in keys:
        label = key.removeprefix(PREFIX)
        points = [(line["step"], line[key]) for line in logged if line.get(key) is not None]
        role = ROLE_OF_SPLIT.get(label.partition("/")[0], "before")
        series.append(charts.Series(label, role, *map(list, zip(*points, strict=True))))
    columns = ("step", *(curve.label for curve in series))
    rows: list[Row] = [(str(line["step"]), *(Number(shown(line.get(key))) for key in keys)) for line in logged]
    name = anchor("training", title, evidence.name)
    svg = charts.lines(name, title, description, series, x_label="step", y_label=unit, whole_x=True)
    return Chart(title, description, svg, Table(title, columns, first_rows(rows)))
