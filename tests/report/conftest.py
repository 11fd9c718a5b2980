"""Measured runs made of numbers, and charts that are drawn once."""

import pytest

from tests.support.drawn_charts import drawn  # noqa: F401  (fixture)
from tests.support.measured_runs import make_measured_run, make_oracle_run  # noqa: F401  (fixtures)


@pytest.fixture(autouse=True)
def _charts_drawn_once(drawn):  # noqa: F811
    """Every test of the report."""
