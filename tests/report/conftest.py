"""Measured runs made of numbers, and charts that are drawn once."""

import functools
import pickle

import pytest

from llm_forget.report.render import charts
from tests.support.measured_runs import make_measured_run, make_oracle_run  # noqa: F401  (fixtures)

_svgs: dict[bytes, str] = {}


@pytest.fixture(autouse=True)
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[bytes, str]:
    """The charts that tests drew before: most pages have the same ones, and drawing them takes a second each time."""
    for kind in ("lines", "plane", "row_bars", "recovery_bars"):
        monkeypatch.setattr(charts, kind, functools.partial(_draw_once, kind, getattr(charts, kind)))
    return _svgs


def _draw_once(kind, draw, *numbers, **options):
    key = pickle.dumps((kind, numbers, options))
    if key not in _svgs:
        _svgs[key] = draw(*numbers, **options)
    return _svgs[key]
