"""Versions: one for one content, whole or not there, and the same bits when it is loaded."""

import errno
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch

from llm_forget.compliance.ledger.ledger import Ledger
from llm_forget.compliance.versions import store
from llm_forget.compliance.versions.versions import add_version, list_versions, path_of, rollback, use
from llm_forget.core.digests import file_digest
from llm_forget.core.errors import AdapterRefused, EvidenceBroken
from llm_forget.core.files import write_json
from llm_forget.core.run_directory import Run
from llm_forget.models.digest import source_digest
from tests.support.fault_positions import FAULTS
from tests.support.version_cases import FailingWrites, close, events, logits, unclean, whole

CANARY = "Marigold Quartermaine"  # an id that is a name of a person


def test_the_same_content_added_twice_is_one_version_and_one_event(evidence, base, make):
    run = make("run", base, forget=["a"], retain=["b"])
    first = add_version(evidence, run.path)
    copy = shutil.copytree(run.path, run.path.with_name("copy"))
    assert add_version(evidence, run) == add_version(evidence, copy) == first
    assert len(events(evidence, "version")) == 1
    assert source_digest(str(run.path)).removeprefix("sha256:").startswith(first)


@pytest.mark.parametrize("name", ["extra.bin", "../outside"])
def test_a_manifest_that_lists_what_a_version_would_not_hold_is_refused(evidence, base, make, name):
    run = make("run", base, forget=["a"], retain=["b"])
    (run.adapter / name).write_text("x")
    manifest = json.loads((run.adapter / "manifest.json").read_text())
    manifest["files"][name] = file_digest(run.adapter / name)
    write_json(run.adapter / "manifest.json", manifest)
    with pytest.raises(AdapterRefused, match="is not the file that the run wrote"):
        add_version(evidence, run)


def test_a_version_has_the_content_digest_of_its_run(evidence, base, make):
    target = make("target", base, train=["a", "b"])
    run = make("run", target.path, forget=["a"], retain=["b"])
    version = add_version(evidence, run)
    for folder in (path_of(evidence, version), path_of(evidence, version).parent):
        assert source_digest(str(folder)) == source_digest(str(run.path))
    assert Run.open(path_of(evidence, version).parent).complete


def test_base_runs_are_added_first_and_outlive_their_folders(evidence, base, make):
    target = make("target", base, train=["a", "b"])
    run = make("run", target.path / "model", forget=["a"], retain=["b"])
    digest = source_digest(str(run.path))
    version = add_version(evidence, run)
    assert [(v.run, v.parent is None) for v, _, _ in list_versions(evidence)] == [("target", True), ("run", False)]
    shutil.rmtree(target.path)
    shutil.rmtree(run.path)
    use(evidence, version)
    assert source_digest(str(path_of(evidence))) == digest


def test_a_run_on_a_version_has_it_as_its_parent(evidence, base, make):
    first = add_version(evidence, make("first", base, forget=["a"], retain=["b"]))
    second = add_version(evidence, make("second", path_of(evidence, first), forget=["b"], retain=["c"]))
    assert {v.id: v.parent for v, _, _ in list_versions(evidence)} == {first: None, second: first}


def test_large_files_are_linked_if_possible_and_copied_otherwise(evidence, base, make, monkeypatch):
    monkeypatch.setattr(store, "LINKED", 3)
    linked = make("linked", base, train=["a"])
    folder = path_of(evidence, add_version(evidence, linked))
    assert (folder / "model.safetensors").samefile(linked.model / "model.safetensors")
    assert not (folder / "config.json").samefile(linked.model / "config.json")

    def other_file_system(*_, **__):
        raise OSError(errno.EXDEV, "another file system")

    monkeypatch.setattr(os, "link", other_file_system)
    copied = make("copied", base, train=["a"])
    folder = path_of(evidence, add_version(evidence, copied))
    assert (folder / "model.safetensors").read_bytes() == b"copied"
    assert not (folder / "model.safetensors").samefile(copied.model / "model.safetensors")


def test_moved_evidence_still_loads(evidence, base, make):
    run = make("run", make("target", base, train=["a", "b"]).path, forget=["a"], retain=["b"])
    version = add_version(evidence, run)
    digest = source_digest(str(run.path))
    shutil.rmtree(run.path.with_name("target"))
    moved = evidence.rename(evidence.with_name("elsewhere"))
    assert source_digest(str(path_of(moved, version))) == digest


def test_versions_contain_no_row_ids_and_no_data_paths(evidence, base, make):
    run = make("run", base, forget=[CANARY], retain=["b"])
    run.records.mkdir()
    (run.records / "forget.jsonl").write_text(json.dumps({"text": f"{CANARY} lives here"}))
    use(evidence, add_version(evidence, run))
    for path in evidence.rglob("*"):
        if path.is_file():
            assert CANARY.encode() not in path.read_bytes(), path
            assert b"people.jsonl" not in path.read_bytes(), path
    assert evidence.stat().st_mode & 0o077 == 0


def test_the_same_weights_with_other_rows_are_refused(evidence, base, make):
    add_version(evidence, make("one", base, weights="same", forget=["a"], retain=["b"]))
    with pytest.raises(ValueError, match="but other rows"):
        add_version(evidence, make("two", base, weights="same", forget=["z"], retain=["b"]))


@pytest.mark.parametrize("fault", ["bit", "link", "unfinished", "changed base", "no rows"])
def test_an_altered_or_incomplete_run_becomes_no_version(evidence, base, make, fault):
    target = make("target", base, train=["a", "b"])
    run = make("run", target.path, forget=["a"], retain=["b"])
    weights = run.adapter / "adapter_model.safetensors"
    if fault == "bit":
        weights.write_bytes(b"ruN")
    elif fault == "link":
        weights.rename(run.path / "weights")
        weights.symlink_to(run.path / "weights")
    elif fault == "no rows":
        write_json(run.provenance_file, {**run.provenance, "data": {}})
    elif fault == "unfinished":
        write_json(run.state_file, {**run.state, "status": "running"})
    else:
        (target.model / "model.safetensors").write_bytes(b"other")
    with pytest.raises(ValueError, match=r"run|link|changed|no rows"):
        add_version(evidence, run)
    assert not [e for e in events(evidence, "version") if e.body["run"] == "run"]
    assert not list(evidence.rglob(".*.tmp"))


def test_after_a_kill_before_the_event_adding_again_creates_the_same_version(evidence, base, make, monkeypatch):
    run = make("run", base, forget=["a"], retain=["b"])
    append = Ledger.append

    def cut_off(self, kind, body, **given):
        if kind == "version":
            raise KeyboardInterrupt
        return append(self, kind, body, **given)

    monkeypatch.setattr(Ledger, "append", cut_off)
    with pytest.raises(KeyboardInterrupt):
        add_version(evidence, run)
    (left,) = [path.name for path in (evidence / "versions").iterdir() if path.is_dir()]  # the weights were written
    assert not events(evidence, "version")
    monkeypatch.undo()
    assert add_version(evidence, run) == add_version(evidence, run) == left
    assert len(events(evidence, "version")) == 1
    use(evidence, left)


def test_a_recorded_version_without_files_is_restored_under_the_same_id(evidence, base, make):
    run = make("run", base, forget=["a"], retain=["b"])
    version = add_version(evidence, run)
    shutil.rmtree(evidence / "versions" / version)
    with pytest.raises(EvidenceBroken, match="gone"):
        use(evidence, version)
    assert add_version(evidence, run) == version
    assert len(events(evidence, "version")) == 1
    use(evidence, version)


@pytest.mark.slow
@FAULTS
def test_after_any_failed_write_adding_again_creates_the_version_once(evidence, base, make, monkeypatch, faults):
    start = add_version(evidence, make("start", base, forget=["a"], retain=["b"]))
    use(evidence, start)
    run = make("counted", base, forget=["a"], retain=["b"])
    with monkeypatch.context() as patch:
        writes = FailingWrites(patch, sys.maxsize)
        add_version(evidence, run)
    count = writes.made
    assert count > 10
    for number in faults.of(count):
        run = make(f"run-{number}", base, forget=["a"], retain=["b"])
        with monkeypatch.context() as patch:
            FailingWrites(patch, number)
            with pytest.raises(OSError, match="no space left"):
                add_version(evidence, run)
        version = add_version(evidence, run)
        assert len([e for e in events(evidence, "version") if e.body["id"] == version]) == 1
        whole(evidence, [start])
        use(evidence, version)
        use(evidence, start)
    run = make("last", base, forget=["a"], retain=["b"])
    with monkeypatch.context() as patch:
        FailingWrites(patch, count)
        add_version(evidence, run)  # the last fault was at the last write


@pytest.mark.slow
def test_versions_of_successive_real_runs_load_evaluate_and_respect_deletions(
    evidence, tmp_path, tiny_folder, monkeypatch
):
    from llm_forget.workflows.evaluate import evaluate
    from llm_forget.workflows.finetune import finetune
    from llm_forget.workflows.unlearn import unlearn

    monkeypatch.setenv("LLM_FORGET_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    for name in "abc":
        rows = [{"id": f"{name}{i}", "question": f"Who is {name}{i}?", "answer": f"{CANARY} {i}"} for i in range(4)]
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    keys = {"learning_rate": 1e-2, "max_steps": 1, "disable_tqdm": True, "use_cpu": True}
    finetune(**keys, model_name_or_path=str(tiny_folder), train=["a.jsonl", "b.jsonl", "c.jsonl"], output_dir="target")
    unlearn(**keys, model_name_or_path="target", forget="a.jsonl", retain=["b.jsonl", "c.jsonl"], output_dir="no-a")
    unlearn(**keys, model_name_or_path="no-a", forget="b.jsonl", retain="c.jsonl", output_dir="no-a-b")
    before = {name: logits(name) for name in ("no-a", "no-a-b")}
    add_version(evidence, "no-a-b")
    ids = {version.run: version.id for version, _, _ in list_versions(evidence)}
    assert list(ids) == ["target", "no-a", "no-a-b"]
    for name in ("target", "no-a", "no-a-b"):
        shutil.rmtree(name)
    use(evidence, ids["no-a"])
    use(evidence, ids["no-a-b"])
    assert rollback(evidence) == ids["no-a"]
    for name, expected in before.items():
        assert torch.equal(logits(path_of(evidence, ids[name])), expected)
    folder = path_of(evidence, ids["no-a-b"])
    kept = {path: path.stat().st_mtime_ns for path in evidence.rglob("*")}
    found = evaluate(folder, "basic", forget="a.jsonl", retain="c.jsonl", quiet=True, use_cpu=True)
    assert found["suites"]["basic"]["metrics"]
    assert kept == {path: path.stat().st_mtime_ns for path in evidence.rglob("*")}, "evaluation writes no evidence"
    close(evidence, *[f"b{i}" for i in range(4)])
    assert unclean(evidence) == {"target", "no-a"}
    with pytest.raises(ValueError, match="would bring it back"):
        rollback(evidence, ids["target"])
    for path in evidence.rglob("*"):
        assert path.is_dir() or CANARY.encode() not in path.read_bytes(), path
