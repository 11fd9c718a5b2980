"""The commands on requests, from the first to the certificate, with a model made here."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from llm_forget.cli.main import app
from llm_forget.compliance.ledger.ledger import Ledger
from tests.support import request_cases as cases, request_worker
from tests.support.failing_disk import failing
from tests.support.forked import forked

pytestmark = pytest.mark.slow

SUITE = {
    "probes": {
        "forget": {"probe": "logprobs", "split": "forget"},
        "retain": {"probe": "logprobs", "split": "retain"},
    },
    "metrics": {
        "forget_probability": {"metric": "probability", "records": "forget", "goal": "match_oracle"},
        "retain_probability": {"metric": "probability", "records": "retain", "goal": "keep"},
    },
    "verdict": {"forgot": [{"line": "forget_probability", "at_most": 1000, "of": "before"}]},
}
RULES = [{"line": "retain_probability", "at_least": 0.0001, "of": "before"}]


def call(*words: str) -> Any:
    return CliRunner().invoke(app, list(words))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_folder: Path) -> Path:
    """A working directory with rows, a recipe, a suite and a policy."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LLM_FORGET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("LLM_FORGET_EVIDENCE", "evidence")
    near = {**cases.rows()[0], "id": "near-0", "subject": "Bob", "answer": cases.rows()[0]["answer"] + " or so"}
    cases.write_rows(tmp_path, [*cases.rows(), near])
    recipe = {
        "model_name_or_path": str(tiny_folder), "output_dir": "runs/npo", "method": "npo", "num_train_epochs": 1,
        "per_device_train_batch_size": 4, "lora_r": 2, "max_length": 128, "use_cpu": True, "disable_tqdm": True,
        "suite": "suite.yaml", "retain": "builtin:demo/retain", "forget": "builtin:demo/forget",
    }  # fmt: skip
    for name, content in (("recipe", recipe), ("suite", SUITE), ("policy", {"rules": RULES})):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return tmp_path


def test_a_request_goes_from_a_subject_to_a_certificate(here: Path) -> None:
    added = call("request", "add", "--subject", "ANN", "--data", "rows.jsonl", "--category", "gdpr")
    assert added.exit_code == 0, added.output
    assert "3 of 13 rows to forget, 23.1% (3 normalised); 1 near-duplicate to decide about" in added.output
    assert "near-0  like ann-0  near" in added.output
    undecided = call("request", "run", "req-0001", "recipe.yaml")
    assert undecided.exit_code == 2
    assert call("request", "run", "req-0001", "recipe.yaml", "--forget", "x.jsonl").exit_code == 2
    # The disk fills up in the middle of it; the same command goes on.
    words = ("request", "run", "req-0001", "recipe.yaml", "--include_near", "near-0")
    with failing(70, onwards=True) as calls:
        stopped = call(*words)
    assert (stopped.exit_code, len(calls) > 70) == (5, True), stopped.output
    for _ in range(2):
        done = call(*words)
        assert done.exit_code == 0, done.output
        assert "req-0001 is executed; next: llm-forget request close req-0001 --run runs/npo-req-0001" in done.output
    with Ledger.open(Path("evidence")) as ledger:
        states = [event.body["state"] for event in ledger.events("request")]
    assert states == ["received", "resolved", "decided", "running", "executed"]
    facts = json.loads(Path("runs/npo-req-0001/provenance.json").read_text())
    assert sorted(facts["data"]["forget"]["ids"]) == ["ann-0", "ann-1", "ann-2", "near-0"]
    assert len(facts["data"]["retain"]["ids"]) == 9
    assert call("certificate", "req-0001").exit_code == 2
    closed = call("request", "close", "req-0001", "--run", "runs/npo-req-0001", "--policy", "policy.yaml")
    assert closed.exit_code == 0, closed.output
    assert "req-0001 is closed (pass" in closed.output
    assert "in time" in call("request", "list").output
    shown = call("request", "show", "req-0001")
    assert "ann" not in shown.output.lower()
    assert call("request", "run", "req-0001", "recipe.yaml").exit_code == 0
    issued = call("certificate", "req-0001", "--output", "c.json")
    assert issued.exit_code == 0, issued.output
    valid = call("certificate", "verify", "c.json", "--key", "evidence/signing.pub", "--evidence", "evidence")
    assert valid.exit_code == 0, valid.output
    for path in [*Path("evidence").rglob("*"), Path("c.json"), Path("c.html")]:
        assert path.is_dir() or cases.CANARY.encode() not in path.read_bytes()
    for told in (added, undecided, done, closed, shown, issued, valid):
        assert cases.CANARY not in told.output


@pytest.mark.long
@pytest.mark.processes
@pytest.mark.usefixtures("libraries")
@pytest.mark.timeout(1200)  # seconds of work, more where others have the cores
@pytest.mark.parametrize("kills", [6, pytest.param(15, marks=pytest.mark.exhaustive)])
def test_a_request_killed_at_random_points_ends_like_an_uninterrupted_one(here: Path, kills: int) -> None:
    done = forked(lambda: print(json.dumps(request_worker.killed_ways(kills))), cwd=here, timeout=1100)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["killed"] == kills
    assert found["ended"] > 1
    assert len(found["left"]) > 1, f"kills met {found['left']}"


def test_a_dry_run_prints_the_sources_and_adds_no_step(here: Path) -> None:
    made = cases.received(here / "evidence", str(here / "rows.jsonl"), "none", subject="Ann")
    done = call("request", "run", made.id, "recipe.yaml", "--dry_run", "true")
    assert done.exit_code == 0, done.output
    assert "forget: {'path': " in done.output
    assert "about 1 step; no earlier run to estimate the time from" in done.output
    assert "state" not in done.output
    assert "decided" in call("request", "list").output
    assert not (here / "runs").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--subject", "Eve"], "0 rows matched"),
        (["--subject", "Ann", "--ids", "x"], "exactly one"),
        ([], "exactly one"),
        (["--ids", "ids.yaml"], "id 1 is int"),
        (["--subject", "Ann", "--category", "gdrp"], "gdpr"),
        (["--subject", "Ann", "--due", "soon"], "YYYY-MM-DD"),
        (["--subject", "Ann", "--subject_field", "person"], "no column 'person'"),
        (["--subject", "Ann", "--near", "0"], "above 0"),
    ],
)
def test_an_invalid_request_is_refused_and_leaves_no_folder(here: Path, words: list[str], said: str) -> None:
    (here / "ids.yaml").write_text("- 0123\n")
    refused = call("request", "add", "--data", "rows.jsonl", *words)
    assert refused.exit_code == 2
    assert said in refused.output
    assert cases.CANARY not in refused.output
    assert "no requests" in call("request", "list").output


def test_the_exit_code_of_closing_is_the_policy_answer(here: Path) -> None:
    evidence = here / "evidence"
    made = cases.received(evidence, str(here / "rows.jsonl"), "none", subject="Ann")
    policy = str(cases.policy(here))
    runs = {
        "bad": cases.measured_run(here / "bad", made.ids(), cases.OTHERS, value=0.9),
        "few": cases.measured_run(here / "few", made.ids(), cases.OTHERS, n=1, seed="few"),
    }
    codes = {
        name: call("request", "close", made.id, "--run", str(run), "--policy", policy) for name, run in runs.items()
    }
    assert {name: result.exit_code for name, result in codes.items()} == {"bad": 1, "few": 3}
    assert "stays open" in codes["few"].output
    accepted = ("--accept_inconclusive", "one row cannot tell")
    assert call("request", "close", made.id, "--run", str(runs["few"]), "--policy", policy, *accepted).exit_code == 0
    assert call("request", "close", "req-0009", "--run", "x").exit_code == 2


def test_ids_with_control_characters_cannot_control_the_terminal(here: Path) -> None:
    ann = cases.rows()[0]
    hostile = {**ann, "id": "x\x1b]0;title\x07\u202e", "subject": "Bob", "answer": ann["answer"] + " or so"}
    cases.write_rows(here, [*cases.rows(), hostile])
    added = call("request", "add", "--subject", "Ann", "--data", "rows.jsonl")
    assert added.exit_code == 0, added.output
    for said in (added.output, call("request", "show", "req-0001").output):
        assert "title" in said
        # click takes some sequences from what is no terminal by itself; not these
        assert not {"\x07", "\u202e"} & set(said)


def test_a_missing_evidence_folder_is_reported(here: Path) -> None:
    assert "no requests" in call("request", "list", "--evidence", "nowhere").output
    assert call("request", "show", "req-0001").exit_code == 2
    assert not os.path.exists("nowhere")


def test_a_due_date_in_the_past_gives_a_warning(here: Path) -> None:
    added = call("request", "add", "--subject", "Ann", "--data", "rows.jsonl", "--due", "2020-01-01")
    assert added.exit_code == 0, added.output
    assert "--due 2020-01-01 is in the past" in added.stderr
    amended = call("request", "add", "--subject", "Ann", "--data", "rows.jsonl", "--due", "2999-01-01")
    assert "in the past" not in amended.output


def test_a_missing_recipe_is_reported_before_heavy_imports(here: Path) -> None:
    made = cases.received(here / "evidence", str(here / "rows.jsonl"), "none", subject="Ann")
    code = "import sys; from llm_forget.cli.main import app\ntry: app()\nfinally: print('transformers' in sys.modules)"
    words = [sys.executable, "-c", code, "request", "run", made.id, "nope.yaml"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (2, "False")
    assert "there is no file 'nope.yaml'" in done.stderr
