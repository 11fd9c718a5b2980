"""What runs say reaches the ledger once, and the ledger answers months later."""

import contextlib
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from llm_forget.cli.main import app
from llm_forget.compliance.ledger.describe import event_summary
from llm_forget.compliance.ledger.ledger import Event, Ledger
from llm_forget.compliance.ledger.record_runs import note_run, weights_of
from llm_forget.compliance.versions.deletion_check import Deletions
from llm_forget.compliance.versions.lineage import training_history
from llm_forget.compliance.versions.record_history import record_trail
from llm_forget.core.digests import file_digest, json_digest
from llm_forget.core.errors import AdapterRefused
from llm_forget.core.files import write_json
from llm_forget.core.formats.results import Results
from llm_forget.core.run_directory import Run
from llm_forget.core.strict_json import canonical_digest
from llm_forget.core.text import model_name
from llm_forget.models.digest import source_digest
from tests.support.broken_disk import broken_disk
from tests.support.fault_positions import FAULTS, FaultPositions

CANARY = "Marigold Quartermaine"  # an id that is a name of a person
Make = Callable[..., Run]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """``make(name, base, train=[ids])`` or ``(..., forget=[ids], retain=[ids])``: a finished run of a few bytes."""
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "config.json").write_text("{}")
    (tmp_path / "hub" / "model.safetensors").write_bytes(b"base")

    def made(name: str, base: str = "hub", *, listed: bool = False, **splits: list[str]) -> Run:
        kind = "unlearn" if "forget" in splits else "finetune"
        source = str(tmp_path / base)
        run = Run.start(tmp_path / name, kind, {"model_name_or_path": source}, {"seed": 0}, False)
        folder = run.adapter if kind == "unlearn" else run.model
        folder.mkdir()
        if kind == "unlearn":
            (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4}))
            (folder / "adapter_model.safetensors").write_bytes(name.encode())
            files = {path.name: file_digest(path) for path in folder.iterdir()}
            write_json(
                folder / "manifest.json", {"files": files, "tensors": {}, "base": source_digest(source), "beneath": []}
            )
        else:
            (folder / "config.json").write_text("{}")
            (folder / "model.safetensors").write_bytes(name.encode())
        data: dict[str, Any] = {
            split: {"rows": len(ids), "digest": canonical_digest(ids), "ids": ids} for split, ids in splits.items()
        }
        if listed:
            for split, found in data.items():
                text = "".join(f"{record}\n" for record in found.pop("ids")).encode()
                file = run.path / "row_ids" / f"{split}.txt"
                file.parent.mkdir(exist_ok=True)
                file.write_bytes(text)
                digest = f"sha256:{hashlib.sha256(text).hexdigest()}"
                found["ids_file"] = {"name": f"row_ids/{split}.txt", "ids": found["rows"], "digest": digest}
        base_facts = {"name": source, "revision": "main", "digest": source_digest(source)}
        write_json(run.provenance_file, {"kind": kind, "base": base_facts, "data": data, "seed": 0})
        run.finish()
        return run

    return made


@pytest.fixture
def evaluated(make: Make) -> Run:
    """A target and a run that unlearned one record of it, with results."""
    make("target", train=[CANARY, "b", "c"])
    run = make("npo", "target", forget=[CANARY], retain=["b", "c"])
    model = {"name": "npo", "digest": "sha256:0"}
    line = {"value": 0.1, "ci": None, "n": 1, "n_unscored": 0, "goal": "lower", "before": None, "oracle": None}
    suite = {"metrics": {"probability": line}, "verdict": {"forgot": {"answer": "yes", "before": "no", "findings": []}}}
    results = {
        "format": Results.FORMAT,
        "llm_forget": "0.1.0",
        "models": {"before": model, "unlearned": model, "oracle": None},
    }
    write_json(run.results_file, {**results, "suites": {"demo": suite}})
    return run


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger.open(tmp_path / "evidence", create=True)


def kinds(events: list[Event]) -> list[tuple[str, int]]:
    return [(event.kind, event.body.get("records", {}).get("n", 0)) for event in events]


def test_a_run_is_recorded_once_with_its_records(ledger: Ledger, evaluated: Run, tmp_path: Path) -> None:
    assert kinds(note_run(ledger, tmp_path / "target")) == [("training", 3)]
    noted = note_run(ledger, evaluated)
    assert kinds(noted) == [("unlearning", 1), ("training", 2), ("verification", 0)]
    assert note_run(ledger, evaluated) == note_run(ledger, str(evaluated.path)) == noted
    assert ledger.head()[0] == 4
    assert [event.kind for event in ledger.about(CANARY, CANARY)] == ["training", "unlearning"]
    assert [event.seq for event in ledger.about("b", "b")] == [1, 3]
    body = noted[2].body
    assert (body["answers"], body["results"]) == (
        {"demo": {"forgot": "yes"}},
        json_digest(json.loads(evaluated.results_file.read_text())["suites"]),
    )
    ledger.verify()


@pytest.mark.slow
@FAULTS
def test_a_run_whose_recording_was_killed_is_recorded_once(
    evaluated: Run, tmp_path: Path, faults: FaultPositions
) -> None:
    def note(folder: Path, at: int, **fault: bool) -> int:
        with Ledger.open(folder, create=True) as ledger, broken_disk(at, **fault) as calls:
            note_run(ledger, evaluated)
        return len(calls)

    count = note(tmp_path / "whole", sys.maxsize)
    assert count > 30, "few writes"
    for at in [*faults.of(count), count]:
        folder = tmp_path / f"evidence-{at}"
        Ledger.open(folder, create=True).close()
        process = os.fork()
        if not process:
            with contextlib.suppress(BaseException):
                note(folder, at, kill=True)
            os._exit(0)
        _, status = os.waitpid(process, 0)
        with Ledger.open(folder) as ledger:
            ledger.verify()
            assert len(ledger.about(CANARY, CANARY)) == len(ledger.events("unlearning")), f"write {at}"
            note_run(ledger, evaluated)
            assert kinds(ledger.events()) == [("unlearning", 1), ("training", 2), ("verification", 0)], f"write {at}"
        shutil.rmtree(folder)
    assert status == 0, "the last kill was beyond the last write"


def test_changed_results_are_another_verification(ledger: Ledger, evaluated: Run) -> None:
    note_run(ledger, evaluated)
    results = json.loads(evaluated.results_file.read_text())
    results["suites"]["demo"]["verdict"]["forgot"]["answer"] = "no"
    write_json(evaluated.results_file, results)
    common = {"models": results["models"], "rules": []}
    ruled = {"results": "sha256:of others", "policy": "old", "answer": "pass", **common}
    write_json(evaluated.path / "verify.json", ruled)
    assert "policy" not in note_run(ledger, evaluated)[-1].body, "a verdict about other results is not taken over"
    ruled = {"results": json_digest(results["suites"]), "policy": "default", "answer": "fail", **common}
    write_json(evaluated.path / "verify.json", ruled)
    assert note_run(ledger, evaluated)[-1].body["policy"] == {"name": "default", "answer": "fail"}
    write_json(evaluated.path / "verify.json", {**ruled, "quick": True})
    assert "policy" not in note_run(ledger, evaluated)[-1].body, "a quick verification is not an answer of the policy"
    assert [event.body["answers"]["demo"]["forgot"] for event in ledger.events("verification")] == ["yes", "no", "no"]


def test_ids_in_a_separate_file_are_recorded_the_same(ledger: Ledger, make: Make) -> None:
    run = make("target", listed=True, train=["a", "b\u2028c", ""])
    assert kinds(note_run(ledger, run)) == [("training", 3)]
    assert len(ledger.about("b\u2028c", "b\u2028c")) == 1


def test_a_changed_list_of_ids_is_refused(ledger: Ledger, make: Make) -> None:
    run = make("target", listed=True, train=["a", "b"])
    (run.path / "row_ids" / "train.txt").write_text("a\n")
    with pytest.raises(ValueError, match="is not the list of ids that the run wrote"):
        note_run(ledger, run)
    assert ledger.head()[0] == 0


@pytest.mark.parametrize("listed", [False, True])
def test_rows_with_subjects_are_found_by_subject_and_without_until_the_subject_is_unlinked(
    ledger: Ledger, make: Make, listed: bool
) -> None:
    run = make("target", listed=listed, train=["r1", "r2", "r3", "r4"])
    facts, subjects = run.provenance, ["Ann\n", "Ann\n", "Bob", None]
    if listed:
        text = "".join(json.dumps(one) + "\n" for one in subjects).encode()
        (run.path / "row_ids" / "train.subjects.jsonl").write_bytes(text)
        digest = f"sha256:{hashlib.sha256(text).hexdigest()}"
        facts["data"]["train"]["subjects_file"] = {"name": "row_ids/train.subjects.jsonl", "ids": 4, "digest": digest}
    else:
        facts["data"]["train"]["subjects"] = subjects
    write_json(run.provenance_file, facts)
    (event,) = note_run(ledger, run)
    assert "4 records" in event_summary(event)
    assert [len(ledger.about(*asked)) for asked in (("Ann\n",), ("Ann\n", "r2"), ("Ann\n", "r3"), ("r2", "r2"))] == [
        1,
        1,
        0,
        1,
    ]
    assert ledger.destroy_keys(["Ann\n"]) == 3
    for one in ("r1", "r2"):
        assert not ledger.about(one) + ledger.about("Ann\n", one)
    assert ledger.about("Bob", "r3") == ledger.about("r4", "r4") == [event]
    ledger.verify()


@pytest.mark.slow
def test_a_real_run_records_subjects_and_all_rows_of_a_subject_are_unlinked_at_once(
    ledger: Ledger, tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llm_forget.workflows.unlearn import unlearn

    monkeypatch.setenv("LLM_FORGET_CACHE", str(tmp_path / "cache"))
    for name, whose in (("forget", CANARY), ("retain", None)):
        rows = [{"id": f"{name}{i}", "subject": whose, "question": "Who?", "answer": f"{name} {i}"} for i in range(2)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sources = {name: str(tmp_path / f"{name}.jsonl") for name in ("forget", "retain")}
    keys = {"max_steps": 1, "disable_tqdm": True, "use_cpu": True, "output_dir": str(tmp_path / "run")}
    run = unlearn(**keys, **sources, model_name_or_path=str(tiny_folder))
    assert run.provenance["data"]["forget"]["subjects"] == [CANARY, CANARY]
    assert "subjects" not in run.provenance["data"]["retain"]
    note_run(ledger, run)
    assert [e.kind for e in ledger.about(CANARY, "forget1") + ledger.about("forget1", "forget1")] == ["unlearning"] * 2
    assert ledger.destroy_keys([CANARY]) == 3
    for i in range(2):
        assert not ledger.about(CANARY, f"forget{i}") + ledger.about(f"forget{i}")
    ledger.verify()
    for path in ledger.folder.rglob("*"):
        assert path.is_dir() or CANARY.encode() not in path.read_bytes()


def test_a_changed_list_of_subjects_is_refused(ledger: Ledger, make: Make) -> None:
    run = make("target", listed=True, train=["r1", "r2"])
    facts = run.provenance
    (run.path / "row_ids" / "whose").write_text('"Ann"\n"Bob"\n')
    facts["data"]["train"]["subjects_file"] = {"name": "row_ids/whose", "ids": 2, "digest": "sha256:of another"}
    write_json(run.provenance_file, facts)
    with pytest.raises(ValueError, match="is not the list of ids that the run wrote"):
        note_run(ledger, run)
    assert ledger.head()[0] == 0


def test_changed_weights_are_not_recorded(ledger: Ledger, evaluated: Run) -> None:
    (evaluated.adapter / "adapter_model.safetensors").write_bytes(b"other")
    with pytest.raises(AdapterRefused, match="is not the file that the run wrote"):
        note_run(ledger, evaluated)
    assert ledger.head()[0] == 0


@pytest.mark.parametrize("missing", ["run.json", "provenance.json"])
def test_a_run_without_state_or_provenance_is_refused(ledger: Ledger, make: Make, missing: str) -> None:
    run = make("target", train=["a"])
    (run.path / missing).unlink()
    with pytest.raises(ValueError, match=missing.replace(".", r"\.")):
        note_run(ledger, run)


def test_names_of_models_contain_no_path(tmp_path: Path) -> None:
    (tmp_path / "hub").mkdir()
    assert [model_name(name) for name in (str(tmp_path / "hub"), "/gone/alice/model", "runs/demo/target")] == [
        "hub", "model", "target",
    ]  # fmt: skip
    assert model_name("meta-llama/Llama-3.2-1B") == "meta-llama/Llama-3.2-1B"


def test_lineage_leads_from_a_model_to_all_its_training_data(ledger: Ledger, evaluated: Run, make: Make) -> None:
    make("further", "npo", forget=["b"], retain=["c"])
    for name in ("target", "npo", "further"):
        note_run(ledger, evaluated.path.parent / name)
    weights = {name: weights_of(Run(evaluated.path.parent / name)) for name in ("target", "npo", "further")}
    found = [
        (step.depth, step.event.body["run"], step.event.kind) for step in training_history(ledger, weights["further"])
    ]
    assert found == [
        (0, "further", "unlearning"), (0, "further", "training"),
        (1, "npo", "unlearning"), (1, "npo", "training"), (2, "target", "training"),
    ]  # fmt: skip
    closed = ledger.append("closed", {"request": "r1"}, records=[("b", "b"), (CANARY, CANARY)])
    assert {name: Deletions(ledger).contained_in(digest) for name, digest in weights.items()} == {
        "target": [closed],
        "npo": [closed],
        "further": [],
    }
    ledger.destroy_keys(["b", CANARY])
    assert Deletions(ledger).contained_in(weights["npo"]) == [closed], "still known when the keys are gone"


def test_a_record_that_was_learned_again_is_known_again(ledger: Ledger, evaluated: Run, make: Make) -> None:
    make("again", "npo", train=[CANARY])
    for name in ("target", "npo", "again"):
        note_run(ledger, evaluated.path.parent / name)
    trail = record_trail(ledger, CANARY)
    assert record_trail(ledger, CANARY, "Ann") == trail, "what was noted without a subject is found, too"
    assert {model.run: (model.learned, model.forgot) for model in trail.models} == {
        "target": ([1], []),
        "npo": ([1], [2]),
        "again": ([1, 5], []),
    }


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str]]:
    """``cli("show")``: exit code and what was printed by ``llm-forget audit show``."""
    monkeypatch.setenv("LLM_FORGET_EVIDENCE", str(tmp_path / "evidence"))
    monkeypatch.setenv("COLUMNS", "150")

    def call(*words: str, text: str | None = None) -> tuple[int, str]:
        done = CliRunner().invoke(app, ["audit", *words], input=text)
        return done.exit_code, re.sub(r"\s+", " ", done.output)

    return call


@pytest.mark.slow
def test_the_commands_show_the_history_of_a_record(
    cli: Callable[..., tuple[int, str]], evaluated: Run, tmp_path: Path
) -> None:
    code, said = cli("note", str(tmp_path / "target"), str(evaluated.path))
    assert (code, "unlearning (event 2), training (event 3), verification (event 4)" in said) == (0, True)
    assert "nothing new" in cli("note", str(evaluated.path))[1]
    code, said = cli("show")
    assert (code, CANARY in said) == (0, False)
    assert "run npo, base target, splits forget, 1 record, weights" in said
    code, said = cli("record", CANARY)
    assert code == 0
    assert re.search(r"target - \w{12} 1 - yes npo - \w{12} 1 2 unlearned it", said), said
    assert re.search(r"npo - \w{12} 1, 3 - yes", cli("record", "b")[1])
    code, said = cli("version", "npo")
    assert "learned 3 records (events 1, 3)" in said
    assert "unlearned 1 records (events 2)" in said
    assert "holds no record of a closed deletion" in said
    assert len(re.findall(r"\b[0-9a-f]{32}\b", cli("version", "npo", "--hashes")[1])) == 3
    with Ledger.open(tmp_path / "evidence") as ledger:
        ledger.append("closed", {"request": "r-17"}, records=[(CANARY, CANARY)])
    assert "holds records deleted by request r-17" in cli("version", "target")[1]
    assert "holds no record" in cli("version", "npo")[1]


@pytest.mark.slow
def test_the_commands_unlink_a_record(cli: Callable[..., tuple[int, str]], evaluated: Run, tmp_path: Path) -> None:
    cli("note", str(tmp_path / "target"), str(evaluated.path))
    assert cli("unlink", CANARY) == (0, "destroyed 1 key ")
    code, said = cli("record", CANARY)
    assert (code, "the key that linked them was destroyed" in said) == (2, True)
    code, said = cli("unlink", CANARY)
    assert (code, "none of these subjects has a key" in said) == (2, True)
    assert cli("unlink", "--ids", "-", text="b\nc\n\nnobody\n") == (0, "destroyed 2 keys ")
    assert cli("unlink")[0] == cli("unlink", "b", "--ids", "-")[0] == 2
    assert cli("verify")[0] == 0
    assert all(CANARY.encode() not in path.read_bytes() for path in (tmp_path / "evidence").iterdir())


@pytest.mark.slow
def test_unlinking_a_record_warns_that_its_subject_still_links_it(
    cli: Callable[..., tuple[int, str]], make: Make, tmp_path: Path
) -> None:
    run = make("target", train=["r1", "r2", "r3"])
    facts = run.provenance
    facts["data"]["train"]["subjects"] = ["Ann", "Ann", None]
    write_json(run.provenance_file, facts)
    cli("note", str(run.path))
    assert cli("unlink", "r3") == (0, "destroyed 1 key ")
    code, said = cli("unlink", "r1")
    assert (code, "1 of these have a subject" in said) == (0, True)
    assert cli("record", "r1", "--subject", "Ann")[0] == 0
    assert cli("unlink", "Ann", "r2") == (0, "destroyed 2 keys ")
    assert cli("record", "r1", "--subject", "Ann")[0] == cli("record", "r2")[0] == 2


@pytest.mark.slow
def test_a_broken_chain_gives_exit_code_6(cli: Callable[..., tuple[int, str]], evaluated: Run, tmp_path: Path) -> None:
    pytest.importorskip("cryptography", reason="signatures need the extra 'sign'")
    cli("note", str(tmp_path / "target"), str(evaluated.path))
    code, said = cli("verify")
    assert (code, "intact: 4 events" in said, "no signed head" in said) == (0, True, True)
    assert cli("anchor")[0] == 0
    assert "the signed head is event 4" in cli("verify")[1]
    with Ledger.open(tmp_path / "evidence") as ledger:
        ledger.connection.execute("DELETE FROM events WHERE seq = 4")
    for command in ("verify", "anchor"):
        code, said = cli(command)
        assert (code, "broken at event 4" in said) == (6, True), said
    with Ledger.open(tmp_path / "evidence") as ledger:
        ledger.connection.execute("UPDATE events SET time = '2020' WHERE seq = 2")
    assert (cli("verify")[0], "broken at event 2" in cli("verify")[1]) == (6, True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("show", "--kind", "trainin"), "did you mean 'training'"),
        (("record", "nobody"), "no event is about this record"),
        (("version", "nobody"), "is not a version in the ledger"),
        (("version", ""), "is not a version in the ledger"),
        (("note", "nowhere"), "is not a run directory"),
        (("verify", "--anchor", "nowhere.json"), "nowhere.json"),
        (("unlink", "--ids", "nowhere.txt"), "nowhere.txt"),
    ],
)
def test_an_unanswerable_query_gives_exit_code_2(
    cli: Callable[..., tuple[int, str]], evaluated: Run, words: tuple[str, ...], said: str
) -> None:
    cli("note", str(evaluated.path))
    code, output = cli(*words)
    assert (code, said in output, "Traceback" in output) == (2, True, False), output


def test_reading_creates_no_folder(cli: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    for command in (["show"], ["record", "a"], ["version", "a"], ["verify"], ["anchor"], ["unlink", "a"]):
        code, said = cli(*command)
        assert (code, "there is no ledger in" in said) == (2, True)
    assert not (tmp_path / "evidence").exists()


def test_event_summaries_contain_no_control_characters() -> None:
    body = {
        "run": "\x1b]0;title\x07[red]\u202e",
        "n": 1234,
        "on": True,
        "share": 0.25,
        "many": ["a", "b"],
        "none": None,
    }
    said = event_summary(Event(1, "", "merge", body, "", ""))
    assert said == "run �]0;title�[red]�, n 1,234, on yes, share 0.25, many a b"
