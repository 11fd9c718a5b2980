"""Calibration: the numbers that a run with the two-sided stop measures before its first step."""

from pathlib import Path
from typing import Any

import pytest

from llm_forget import calibrate
from llm_forget.cli.main import app
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
