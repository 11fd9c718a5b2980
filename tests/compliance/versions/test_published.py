"""Closing a request says which models that hold its rows are public (fault 47)."""

import pytest
from typer.testing import CliRunner

from llm_forget.cli.main import app
from llm_forget.compliance.ledger.ledger import Ledger
from llm_forget.compliance.ledger.record_runs import note_run, weights_of
from llm_forget.compliance.versions.published_models import published_with_deleted_rows
from llm_forget.core.run_directory import Run
from tests.support import request_cases as cases


@pytest.mark.slow
def test_closing_names_published_models_with_the_rows_until_they_are_withdrawn(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("LLM_FORGET_EVIDENCE", str(tmp_path / "evidence"))
    ids = [row["id"] for row in cases.rows()]
    target = cases.measured_run(tmp_path / "target", [], [], kind="finetune", train=ids, seed="t")
    made = cases.received(tmp_path / "evidence", cases.write_rows(tmp_path), "none", subject="Ann")
    rest = [name for name in ids if name not in made.ids()]
    run = cases.measured_run(tmp_path / "run", made.ids(), rest, base=target)
    with Ledger.open(tmp_path / "evidence") as ledger:
        for place, path in (("org/old", target), ("org/new", run)):
            note_run(ledger, path)
            pushed = {"repository": place, "commit": f"c-{place}", "tag": "v-1", "files": {}}
            ledger.append("publish", {"action": "push", **pushed, "weights": weights_of(Run(path))})
        assert published_with_deleted_rows(ledger, made.id) == [], "nothing was deleted yet"
    words = ["request", "close", made.id, "--run", str(run), "--policy", str(cases.policy(tmp_path))]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "llm-forget purge org/old --revision v-1" in done.output
    assert "org/new" not in done.output
    with Ledger.open(tmp_path / "evidence") as ledger:
        withdrawal = {"action": "withdraw", "repository": "org/old", "commits": ["c-org/old"], "lfs": []}
        ledger.append("publish", {**withdrawal, "verified": False})
        assert published_with_deleted_rows(ledger, made.id) == [("org/old", "v-1")], "begun only"
        ledger.append("publish", {**withdrawal, "verified": True})
        assert published_with_deleted_rows(ledger, made.id) == []
    assert "org/old" not in CliRunner().invoke(app, words).output
