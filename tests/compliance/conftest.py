"""An evidence folder, which is not there yet, and rows that requests are about."""

from pathlib import Path

import pytest

from tests.support import request_cases as cases


@pytest.fixture
def evidence(tmp_path: Path) -> Path:
    return tmp_path / "evidence"


@pytest.fixture
def source(tmp_path: Path) -> str:
    return cases.write_rows(tmp_path)
