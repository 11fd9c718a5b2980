"""A Hub on loopback, evaluated runs, and evidence about one of them."""

import functools
import pickle
import shutil
from pathlib import Path

import pytest

from llm_forget.core.run_directory import Run
from tests.support.hub_runs import DRAWN, MADE
from tests.support.loopback_hub import loopback_hub, talk_to


@pytest.fixture(autouse=True)
def _draw_equal_charts_once(monkeypatch):
    """Drawing takes most of the time of a push; equal arguments give equal bytes, as the tests of the report show."""
    from llm_forget.report.render import charts

    def once(draw):
        @functools.wraps(draw)
        def drawn(*args, **options):
            key = pickle.dumps((draw.__name__, args, options))
            if key not in DRAWN:
                DRAWN[key] = draw(*args, **options)
            return DRAWN[key]

        return drawn

    for name in ("lines", "plane", "row_bars", "recovery_bars"):
        monkeypatch.setattr(charts, name, once(getattr(charts, name)))


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A loopback Hub that the client of this process talks to; it knows one token."""
    with loopback_hub() as hub:
        talk_to(hub, monkeypatch, tmp_path)
        yield hub


@pytest.fixture
def measured(request, tmp_path):
    """``measured(name, seed)`` gives a run with an adapter that was evaluated."""
    pytest.importorskip("jinja2")
    from llm_forget.workflows.evaluate import evaluate

    def make(name="run", seed=0):
        if name not in MADE:
            MADE[name] = request.getfixturevalue("make_run")(name, seed, use_cpu=True).path
            evaluate(MADE[name], quiet=True)
        return Run(Path(shutil.copytree(MADE[name], tmp_path / "copies" / name)))

    return make
