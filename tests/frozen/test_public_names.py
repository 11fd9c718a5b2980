"""The names that other people's code imports: the package's, and the entry points."""

from __future__ import annotations

import importlib.metadata
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import llm_forget
from tests.frozen.public_names import public_names

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_public_names_keep_their_kinds_and_signatures(compare_frozen: Callable[[str, Any], None]) -> None:
    compare_frozen("public_names", public_names())


def test_public_names_are_sorted_and_unique() -> None:
    assert sorted(set(llm_forget.__all__)) == sorted(llm_forget.__all__)


def test_the_version_is_that_of_the_project() -> None:
    assert llm_forget.__version__ == PROJECT["version"] == importlib.metadata.version("llm-forget")


@pytest.mark.parametrize(
    ("table", "group", "names"),
    [
        (PROJECT["scripts"], "console_scripts", {"llm-forget"}),
        (PROJECT["entry-points"]["pytest11"], "pytest11", {"llm_forget"}),
    ],
)
def test_entry_points_keep_their_names_and_load(table: dict[str, str], group: str, names: set[str]) -> None:
    assert set(table) == names
    installed = importlib.metadata.distribution("llm-forget").entry_points.select(group=group)
    assert {point.name for point in installed} == names
    for name, value in table.items():
        loaded = importlib.metadata.EntryPoint(name, value, group).load()
        assert callable(loaded) if group == "console_scripts" else hasattr(loaded, "pytest_addoption")
