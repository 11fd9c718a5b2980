"""Calibration: the numbers that a run with the two-sided stop measures before its first step."""

import json
from pathlib import Path
from typing import Any

import pytest

from llm_forget import calibrate
from llm_forget.cli.main import app
from llm_forget.core.config import UnlearnConfig, from_keys
from llm_forget.core.run_kinds.unlearn import UNLEARN
from llm_forget.objectives.methods import build_objective
from llm_forget.training.distillation.teacher_pass import teacher_spec
from llm_forget.training.job import Job, _with_stored_levels, prepare
from llm_forget.workflows.unlearn import unlearn
from tests.workflows.test_teachers import job  # noqa: F401  (fixture)

pytestmark = pytest.mark.slow


def test_the_levels_are_those_that_the_run_records(job: dict[str, Any]) -> None:  # noqa: F811
    levels = calibrate(**job, teacher="self")
    assert not Path(job["output_dir"]).exists()
    recorded = unlearn(**job, teacher="self").provenance["calibration"]["holdout"]
    for name, level in recorded.items():
        assert levels["holdout"][name] == pytest.approx(level, abs=1e-6)
    assert levels["forget"].keys() == recorded.keys()


def test_the_level_of_hinge_is_that_of_the_holdout_rows_unless_the_recipe_sets_it(
    job: dict[str, Any],  # noqa: F811
    caplog: pytest.LogCaptureFixture,
) -> None:
    job = {**job, "method": "hinge", "num_train_epochs": 1}
    caplog.set_level("INFO")
    run = unlearn(**job)
    term = run.provenance["objective"]["forget"][0]
    assert 0 < term["rho"] < 0.5  # unknown tokens are not ranked first
    assert f"forget/hinge: rho {term['rho']:.3g}, the level of the target's unknown tokens on 6 holdout" in caplog.text
    assert run.provenance["calibration"]["kept_step"] > 0
    run.state_file.write_text(json.dumps({**run.state, "status": "running"}))  # as if it was killed after its last step
    holdout = Path(job["holdout"])
    holdout.write_text(holdout.read_text(encoding="utf-8").replace("Rome", "Bath"), encoding="utf-8")
    caplog.clear()
    assert unlearn(**job).provenance["objective"]["forget"][0]["rho"] == term["rho"]
    assert "unknown tokens" not in caplog.text  # read, not measured
    other = {**job, "method_args": {"rho": 0.3}, "output_dir": f"{job['output_dir']}-2"}
    fixed = unlearn(**other)
    assert fixed.provenance["objective"]["forget"][0]["rho"] == 0.3
    assert "calibration" not in fixed.provenance


def test_a_resumed_run_has_the_strength_of_divergence_that_it_began_with(job: dict[str, Any]) -> None:  # noqa: F811
    form = {"name": "divergence", "aux_with": "x", "aux_without": "y"}
    data, train, model = from_keys({**job, "teacher": form}, UnlearnConfig)
    objective = build_objective("distil")
    tokenizer, splits, _ = prepare(data, model, objective)
    made = Job(UNLEARN, data, train, model, objective, splits, tokenizer, teacher=teacher_spec(form, None))
    before = {"objective": objective.to_dict(), "teacher": {"arguments": {"a": 0.61}}}
    for provenance, a in (({}, None), (before, 0.61)):
        teacher = _with_stored_levels(made, provenance).teacher
        assert teacher is not None
        assert teacher.arguments["a"] == a


@pytest.mark.parametrize("split", ["forget", "holdout"])
def test_rows_of_both_splits_are_needed(job: dict[str, Any], split: str) -> None:  # noqa: F811
    with pytest.raises(ValueError, match=f"calibration needs rows of '{split}'"):
        calibrate(**{**job, split: None, "method": "npo"})


def test_the_command_prints_a_table(job: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    words = [word for key, value in job.items() for word in (f"--{key}", str(value))]
    app(["calibrate", *words], standalone_mode=False)
    text = capsys.readouterr().out
    assert "extraction strength" in text
    assert "no proof" in text
