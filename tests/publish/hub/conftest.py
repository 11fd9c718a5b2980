"""A Hub on loopback, evaluated runs, and evidence about one of them."""

import shutil
from pathlib import Path

import pytest

from llm_forget.core.run_directory import Run
from tests.support.drawn_charts import drawn  # noqa: F401  (fixture)
from tests.support.hub_runs import MADE
from tests.support.loopback_hub import loopback_hub, talk_to


@pytest.fixture(autouse=True)
def _charts_drawn_once(drawn):  # noqa: F811
    """Drawing takes most of the time of a push."""


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
