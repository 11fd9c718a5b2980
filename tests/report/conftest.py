"""Measured runs made of numbers."""

from tests.support.measured_runs import make_measured_run, make_oracle_run  # noqa: F401  (fixtures)
