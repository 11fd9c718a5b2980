"""What the teacher of a run left behind: the ledger, the end of a request and a purge name the model with the rows."""

import json
from pathlib import Path

import pytest

from llm_forget.compliance.ledger.ledger import Ledger
from llm_forget.compliance.ledger.record_runs import note_run
from llm_forget.compliance.requests.describe import teacher_remains
from llm_forget.core import formats
from llm_forget.core.files import cache_folder
from llm_forget.core.formats.run import Provenance
from llm_forget.core.run_directory import Run
from llm_forget.models.digest import source_digest
from tests.support import request_cases as cases

DIGEST = f"sha256:{0:064x}"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run with a teacher, a finished model with the rows, and one without them."""
    monkeypatch.setenv("LLM_FORGET_CACHE", str(tmp_path / "cache"))
    ann = [row["id"] for row in cases.rows() if row["subject"] == "Ann"]
    run = Run(cases.measured_run(tmp_path / "run", ann, cases.OTHERS))
    for name, ids in (("aux_with", [*ann, *cases.OTHERS]), ("aux_without", cases.OTHERS)):
        cases.measured_run(tmp_path / f"run-{name}", [], [], kind="finetune", train=ids, seed=name)
    teacher = {"name": "divergence", "arguments": {"a": 0.5}, "models": {"aux_with": DIGEST, "aux_without": DIGEST}}
    formats.update(run.provenance_file, Provenance, teacher={**teacher, "cache": "0123.safetensors"})
    return run


@pytest.mark.slow
def test_a_closed_request_lists_the_model_with_its_rows_in_the_ledger(run: Run, tmp_path: Path) -> None:
    evidence = tmp_path / "evidence"
    request = cases.received(evidence, cases.write_rows(tmp_path), subject="Ann")
    cases.close(evidence, request.id, run.path)
    with Ledger.open(evidence) as ledger:
        rows = [step["seq"] for step in request.content["history"] if step["state"] == "resolved"]
        exposed = [e.body["run"] for e in ledger.events("training") if ledger.common_records(rows, [e.seq])]
    assert exposed == ["run-aux_with"]


def test_the_model_with_the_rows_and_the_cached_log_probs_are_listed_until_they_are_deleted(run: Run) -> None:
    (model,) = teacher_remains(run.path)
    assert "run-aux_with' was trained on the forget rows for the teacher" in model
    file = cache_folder() / "teacher" / "0123.safetensors"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"log-probs")
    assert str(file) in teacher_remains(run.path)[1]
    file.unlink()
    Run(Path(f"{run.path}-aux_with")).state_file.unlink()
    assert teacher_remains(run.path) == []


def test_a_model_that_the_recipe_names_is_listed_at_its_path(run: Run, tmp_path: Path) -> None:
    Path(f"{run.path}-aux_with").rename(tmp_path / "first")
    text = run.config_file.read_text(encoding="utf-8")
    run.config_file.write_text(f"{text}teacher: {{name: divergence, aux_with: {tmp_path / 'first'}}}\n")
    assert str(tmp_path / "first") in teacher_remains(run.path)[0]


@pytest.mark.slow
def test_the_model_that_knew_the_rows_is_not_one_of_a_teacher_whatever_their_folders_are_called(tmp_path: Path) -> None:
    evidence, everything = tmp_path / "evidence", [row["id"] for row in cases.rows()]
    request = cases.received(evidence, cases.write_rows(tmp_path), subject="Ann")
    target, seen = (
        Run(cases.measured_run(tmp_path / name, [], [], kind="finetune", train=everything, seed=name))
        for name in ("my-aux_with", "seen")
    )
    other = Run(cases.measured_run(tmp_path / "other", cases.OTHERS[:1], cases.OTHERS[1:]))
    models = {"aux_with": source_digest(str(seen.path))}
    formats.update(other.provenance_file, Provenance, teacher={"name": "divergence", "arguments": {}, "models": models})
    retrained = cases.measured_run(tmp_path / "retrained", [], [], kind="finetune", train=cases.OTHERS, seed="re")
    with Ledger.open(evidence) as ledger:
        for run in (target, seen, other):
            note_run(ledger, run)
    assert cases.close(evidence, request.id, retrained)[1].closed
    facts = json.loads((evidence / "requests" / request.id / "facts.json").read_text())
    assert facts["artefacts"]["before"]["name"] == "my-aux_with"
