"""The section on training: the curves of the two-sided stop, between the limits of unseen rows."""

from types import SimpleNamespace
from typing import Any

from llm_forget.report.sections.training import training_section

INTERVAL = {"value": 0.5, "low": 0.4, "high": 0.6}


def evidence(provenance: dict[str, Any]) -> Any:
    log = [{"step": step, "loss": 1.0, "forget/distil": 0.5} for step in (1, 2)]
    log += [{"step": step, "levels/strength": 1.0 - step / 4, "levels/retain_drift": 0.0} for step in (1, 2)]
    return SimpleNamespace(log=log, provenance=provenance, name="run")


def test_each_level_has_a_chart_with_the_interval_and_the_kept_step() -> None:
    calibration = {"holdout": {"strength": INTERVAL, "margin": INTERVAL}, "kept_step": 2}
    charts = training_section(evidence({"calibration": calibration})).blocks
    assert [chart.title for chart in charts] == ["Term forget/distil", "Level strength"]
    assert "The vertical line is the kept step, 2." in charts[1].description
    assert [row[0] for row in charts[1].table.rows] == ["1", "2"]


def test_a_run_without_the_stop_has_no_such_chart() -> None:
    assert [chart.title for chart in training_section(evidence({})).blocks] == ["Term forget/distil"]
