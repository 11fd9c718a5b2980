"""What docs/verdicts.md shows: for each fault a run that has it, and the changes that lead to *yes* everywhere."""

import json
import sys
from typing import Any

import pytest

from llm_forget.core.config import UnlearnConfig, from_keys
from tests.support.repository import ROOT

sys.path.insert(0, str(ROOT / "recipes" / "demo"))

import advice
import render


@pytest.fixture(scope="module")
def cases() -> dict[str, list[dict[str, Any]]]:
    return json.loads((ROOT / "recipes" / "demo" / "advice.json").read_text(encoding="utf-8"))


def test_the_page_is_what_the_runs_say(cases: dict[str, Any]) -> None:
    page = advice.PAGE.read_text(encoding="utf-8")
    rendered = render.insert(page, "advice", advice.table(cases))
    assert rendered == page, "write it again: python recipes/demo/advice.py"


def test_each_case_has_its_fault_and_ends_with_yes(cases: dict[str, Any]) -> None:
    assert list(cases) == list(advice.CASES)
    for fault, steps in cases.items():
        assert steps[0]["advice"].startswith(fault)
        assert "no" in steps[0]["verdicts"].values()
        assert all(step["advice"] for step in steps[:-1])
        assert set(steps[-1]["verdicts"].values()) == {"yes"}
        assert [step["change"] for step in steps] == [advice.CASES[fault][1], *advice.CASES[fault][2]][: len(steps)]


@pytest.mark.parametrize("fault", list(advice.CASES))
def test_the_changes_are_keys_of_a_recipe(fault: str) -> None:
    recipe, cause, changes = advice.CASES[fault]
    keys = advice.keys_of_stage(recipe, 0, ROOT / "runs")
    for change in (cause, *changes):
        keys |= change
        from_keys({key: value for key, value in keys.items() if value is not None}, UnlearnConfig)
