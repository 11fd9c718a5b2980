"""Frozen JSON files: `pytest tests/frozen` compares with them, `pytest tests/frozen --freeze` writes them again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--freeze", action="store_true", help="write the frozen JSON files from today's behaviour")
    parser.addoption("--freeze_evidence", metavar="DIR", help="copy small evidence of today's code into this folder")


@pytest.fixture
def compare_frozen(request: pytest.FixtureRequest) -> Callable[[str, Any], None]:
    """`compare_frozen(name, content)`: fail where content differs from the frozen `name.json`."""

    def compare(name: str, content: Any) -> None:
        path = FOLDER / f"{name}.json"
        if request.config.getoption("--freeze", default=False):
            path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        before = set(_lines(json.loads(path.read_text(encoding="utf-8"))))
        now = set(_lines(json.loads(json.dumps(content))))
        missing, added = sorted(before - now), sorted(now - before)
        assert before == now, "\n".join(
            [f"differs from {path.name}", *(f"- {line}" for line in missing), *(f"+ {line}" for line in added)]
        )

    return compare


def _lines(content: Any, path: str = "") -> Iterator[str]:
    """One line for each leaf and for each empty container."""
    if isinstance(content, dict) and content:
        for key, value in content.items():
            yield from _lines(value, f"{path} > {key}")
    elif isinstance(content, list) and content:
        for number, value in enumerate(content):
            yield from _lines(value, f"{path} > {number}")
    else:
        yield f"{path}: {json.dumps(content)}"
