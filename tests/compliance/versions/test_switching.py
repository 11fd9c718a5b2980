"""The version in use is switched whole or not at all, and back to what it was."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch

from llm_forget.compliance.versions import store
from llm_forget.compliance.versions.versions import add_version, current, list_versions, path_of, rollback, use
from llm_forget.core.digests import file_digest
from llm_forget.core.errors import AdapterRefused, EvidenceBroken
from llm_forget.core.files import write_json
from tests.support.broken_disk import broken_disk
from tests.support.repository import SUPPORT
from tests.support.version_cases import FailingWrites, events, logits, switches, whole


@pytest.mark.slow
def test_after_any_failed_write_of_a_switch_the_old_or_new_version_is_in_use(evidence, two, monkeypatch):
    first, second = two
    config = evidence / "versions" / second / "config.yaml"
    seen, number, failed = set(), 0, True
    while failed:
        use(evidence, first)
        config.unlink()  # is written anew before the ledger knows of the switch
        before = len(switches(evidence))
        with monkeypatch.context() as patch:
            FailingWrites(patch, number)
            try:
                use(evidence, second)
                failed = False
            except OSError:  # which any of these writes may raise, and nothing else
                pass
        seen.add(whole(evidence, two))
        use(evidence, second)
        assert len(switches(evidence)) == before + 1, "one switch, one event"
        number += 1
    assert seen == set(two)
    assert number > 3


@pytest.mark.slow
def test_after_a_failed_write_of_the_ledger_the_old_version_stays_in_use(evidence, two):
    first, second = two
    number, failed = 0, True
    while failed:
        use(evidence, first)
        before = len(switches(evidence))
        with broken_disk(number) as calls:
            try:
                use(evidence, second)
                failed = False
            except (OSError, ValueError):
                assert len(calls) > number
        # An append whose very last step failed may be on disk: then the switch was made, and once.
        assert whole(evidence, two) == (second if len(switches(evidence)) > before else first)
        use(evidence, second)
        assert len(switches(evidence)) == before + 1
        number += 1
    assert number > 3


@pytest.mark.slow
@pytest.mark.parametrize("kills", [8, pytest.param(50, marks=pytest.mark.exhaustive)])
def test_a_killed_switch_leaves_the_old_or_the_new_version(evidence, two, kills):
    worker = SUPPORT / "switch_worker.py"
    command = [sys.executable, worker, evidence, *two, str(kills)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    killed = json.loads(done.stdout)
    assert killed["calls"] > 8
    assert killed["sqlite"] > 3
    assert killed["random"] == kills
    assert whole(evidence, two)


@pytest.mark.slow
def test_repeated_rollbacks_return_to_earlier_versions(evidence, base, make):
    ids = [add_version(evidence, make(name, base, forget=["a"], retain=["b"])) for name in "abc"]
    for version in ids:
        use(evidence, version)
    assert rollback(evidence) == ids[1] == current(evidence)
    assert rollback(evidence) == ids[0] == current(evidence)
    with pytest.raises(ValueError, match="no version was in use before"):
        rollback(evidence)
    assert rollback(evidence, ids[2][:5]) == ids[2] == current(evidence)
    assert [e.kind for e in events(evidence, "version", "rollback")][-3:] == ["rollback"] * 3


def test_using_the_current_version_again_adds_no_event(evidence, two):
    before = switches(evidence)
    assert use(evidence, two[0]) == two[0]
    assert switches(evidence) == before


@pytest.mark.parametrize("fault", ["bit", "gone", "more", "link", "version.json"])
def test_an_altered_version_is_not_used(evidence, two, fault):
    first, second = two
    folder = path_of(evidence, second)
    weights = folder / "adapter_model.safetensors"
    if fault == "bit":
        weights.write_bytes(b"sEcond")
    elif fault == "gone":
        weights.unlink()
    elif fault == "more":
        (folder / "model.safetensors").write_bytes(b"more")
    elif fault == "link":
        weights.rename(evidence / "weights")
        weights.symlink_to(evidence / "weights")
    else:
        content = json.loads((folder.parent / "version.json").read_text())
        content["config"]["lora_alpha"] = 100
        write_json(folder.parent / "version.json", content)
    with pytest.raises(EvidenceBroken if fault == "version.json" else AdapterRefused, match=second):
        use(evidence, second)
    assert current(evidence) == first


@pytest.mark.slow
@pytest.mark.parametrize("change", ["bytes", "bytes with the time of before", "another file", "nothing"])
def test_a_rollback_reads_a_large_file_again_only_if_it_was_touched(evidence, two, monkeypatch, change):
    monkeypatch.setattr(store, "LINKED", 3)
    monkeypatch.setattr(store, "SETTLED", 0)
    read = []
    monkeypatch.setattr(store, "file_digest", lambda path: read.append(path.name) or file_digest(path))
    first, second = two
    use(evidence, second)
    use(evidence, first)
    weights = path_of(evidence, second) / "adapter_model.safetensors"
    assert "adapter_model.safetensors" in read, "use reads everything"
    read.clear()
    assert rollback(evidence, second) == second
    assert read == []
    use(evidence, first)
    times = weights.stat().st_atime_ns, weights.stat().st_mtime_ns
    if change.startswith("bytes"):
        weights.write_bytes(b"sEcond")
        if "time" in change:
            os.utime(weights, ns=times)
    elif change == "another file":
        weights.with_name("x").write_bytes(b"sEcond")
        os.utime(weights.with_name("x"), ns=times)
        weights.with_name("x").replace(weights)
    if change == "nothing":
        assert rollback(evidence, second) == second
        return
    with pytest.raises(AdapterRefused, match="was changed"):
        rollback(evidence, second)
    assert current(evidence) == first


def test_a_rollback_reads_a_large_file_again_if_it_was_too_new_to_detect_later_changes(evidence, two, monkeypatch):
    monkeypatch.setattr(store, "LINKED", 3)
    monkeypatch.setattr(store, "SETTLED", 3_600_000_000_000)
    use(evidence, two[1])
    use(evidence, two[0])
    read = []
    monkeypatch.setattr(store, "file_digest", lambda path: read.append(path.name) or file_digest(path))
    rollback(evidence, two[1])
    assert "adapter_model.safetensors" in read


def test_an_altered_base_version_is_found(evidence, base, make):
    target = make("target", base, train=["a", "b"])
    version = add_version(evidence, make("run", target.path, forget=["a"], retain=["b"]))
    beneath = next(v.id for v, _, _ in list_versions(evidence) if v.id != version)
    (path_of(evidence, beneath) / "model.safetensors").write_bytes(b"tarGet")
    with pytest.raises(AdapterRefused, match=beneath):
        use(evidence, version)


def test_adding_the_run_again_repairs_a_damaged_version(evidence, base, make):
    run = make("run", base, forget=["a"], retain=["b"])
    version = add_version(evidence, run)
    (path_of(evidence, version) / "adapter_model.safetensors").write_bytes(b"x")
    assert add_version(evidence, run) == use(evidence, version) == version
    assert len(events(evidence, "version")) == 2  # added, used


def test_an_edited_config_yaml_is_rewritten(evidence, two):
    config = path_of(evidence, two[1]).parent / "config.yaml"
    text = config.read_text()
    config.write_text(text.replace("hub-model", "other-model"))
    use(evidence, two[1])
    assert config.read_text() == text


def test_an_edited_pointer_is_rewritten_from_the_ledger(evidence, two):
    pointer = evidence / "versions" / "current.json"
    text = pointer.read_text()
    for edited in ("{", "[]", text.replace(two[0], two[1])):
        pointer.write_text(edited)
        assert current(evidence) == two[0]
        assert pointer.read_text() == text


def test_a_pointer_ahead_of_the_ledger_reveals_a_truncated_ledger(evidence, two):
    shutil.copy(evidence / "ledger.db", evidence.with_name("older.db"))
    use(evidence, two[1])
    shutil.copy(evidence.with_name("older.db"), evidence / "ledger.db")
    with pytest.raises(EvidenceBroken, match="cut off"):
        current(evidence)


def test_an_altered_ledger_prevents_a_switch(evidence, two):
    import sqlite3

    connection = sqlite3.connect(evidence / "ledger.db")
    connection.execute("UPDATE events SET time = '2020-01-01T00:00:00+00:00' WHERE seq = 1")
    connection.commit()
    connection.close()
    with pytest.raises(EvidenceBroken, match="event 1"):
        use(evidence, two[1])


@pytest.mark.slow
def test_a_rollback_restores_identical_logits(evidence, make_run):
    ids = []
    for seed in (1, 2):
        run = make_run(f"run-{seed}", seed)
        named = {"name": run.config["model_name_or_path"], "revision": "main"}
        named["digest"] = json.loads((run.adapter / "manifest.json").read_text())["base"]
        data = {"forget": {"rows": 1, "digest": "sha256:0", "ids": ["f"]}}
        write_json(run.provenance_file, {"kind": "unlearn", "base": named, "data": data})
        ids.append(add_version(evidence, run))
    use(evidence, ids[0])
    before = logits(path_of(evidence))
    use(evidence, ids[1])
    assert not torch.equal(logits(path_of(evidence)), before)
    rollback(evidence)
    assert torch.equal(logits(path_of(evidence)), before)
