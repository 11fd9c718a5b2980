"""Charts that are drawn once a process: most pages and cards have the same ones, and each takes up to a second."""

import functools
import pickle

import pytest

from llm_forget.report.render import charts

KINDS = ("lines", "plane", "row_bars", "recovery_bars")

_svgs: dict[bytes, str] = {}


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[bytes, str]:
    """The charts that tests drew before; equal arguments give equal bytes, as a test of the page shows."""
    for kind in KINDS:
        monkeypatch.setattr(charts, kind, functools.partial(_draw_once, kind, getattr(charts, kind)))
    return _svgs


def _draw_once(kind, draw, *numbers, **options):
    key = pickle.dumps((kind, numbers, options))
    if key not in _svgs:
        _svgs[key] = draw(*numbers, **options)
    return _svgs[key]
