"""A few of the 14,000 tasks of lm-eval: reading all of them takes ten seconds."""

import shutil
from pathlib import Path

import pytest

FOLDERS = ("arc", "gsm8k", "hellaswag", "mmlu/default", "piqa", "wmdp")


@pytest.fixture(params=["few", pytest.param("all", marks=pytest.mark.exhaustive)])
def their_tasks(request, tmp_path_factory, monkeypatch):
    """The tasks that lm-eval finds beside its own code: those of some folders, and all in the exhaustive tests."""
    from lm_eval.tasks import manager

    from llm_forget.evals.lm_eval import tasks

    if request.param == "few":
        folder = tmp_path_factory.mktemp("tasks")
        for name in FOLDERS:
            shutil.copytree(Path(manager.__file__).parent / name, folder / name)
        monkeypatch.setattr(manager, "__file__", str(folder / "manager.py"))
    tasks._their_manager.cache_clear()
    yield
    tasks._their_manager.cache_clear()
