"""Versions: one for one content, switched whole or not at all, never back to one that holds deleted data."""

import errno
import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from llm_forget.cli.main import app
from llm_forget.compliance.ledger.ledger import Ledger
from llm_forget.compliance.versions import store
from llm_forget.compliance.versions.deletion_check import Deletions, met
from llm_forget.compliance.versions.diff import diff
from llm_forget.compliance.versions.purge import plan, purge
from llm_forget.compliance.versions.versions import add_version, current, noted, path_of, rollback, use, versions
from llm_forget.core.digests import file_digest
from llm_forget.core.errors import AdapterRefused, EvidenceBroken
from llm_forget.core.files import write_json
from llm_forget.core.run_directory import Run
from llm_forget.core.strict_json import canonical_digest
from llm_forget.models.digest import source_digest
from llm_forget.models.load import load_base
from llm_forget.models.model_source import find_source
from tests.support import request_cases as cases
from tests.support.broken_disk import broken_disk
from tests.support.repository import SUPPORT

CANARY = "Marigold Quartermaine"  # an id that is a name of a person


@pytest.fixture
def base(tmp_path):
    folder = tmp_path / "hub-model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"base")
    return folder


@pytest.fixture
def make(tmp_path):
    """``make(name, base, train=[ids])`` or ``(..., forget=[ids], retain=[ids])``: a finished run of a few bytes."""

    def made(name, base, *, weights=None, **splits):
        kind = "unlearn" if "forget" in splits else "finetune"
        config = {"model_name_or_path": str(base), "forget": "people.jsonl", "method": "npo", "learning_rate": 1e-4}
        run = Run.start(tmp_path / name, kind, config, config, False)
        weights = (weights or name).encode()
        if kind == "finetune":
            run.model.mkdir()
            (run.model / "config.json").write_text("{}")
            (run.model / "model.safetensors").write_bytes(weights)
        else:
            run.adapter.mkdir()
            (run.adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4}))
            (run.adapter / "adapter_model.safetensors").write_bytes(weights)
            files = {path.name: file_digest(path) for path in run.adapter.iterdir()}
            write_json(
                run.adapter / "manifest.json",
                {"files": files, "tensors": {}, "base": source_digest(str(base)), "beneath": []},
            )
        data = {
            split: {"rows": len(ids), "digest": canonical_digest([split, ids]), "ids": ids}
            for split, ids in splits.items()
        }
        named = {"name": str(base), "revision": "main", "digest": source_digest(str(base))}
        facts = {"kind": kind, "base": named, "data": data, "objective": {"forget": [{"name": "npo"}]}, "seed": 0}
        write_json(run.provenance_file, facts)
        run.finish()
        return run

    return made


def close(evidence, *records, request="R-1"):
    """What closing a deletion request appends."""
    with Ledger.open(evidence) as ledger:
        pairs = [(record, record) for record in records]
        ledger.append("closed", {"request": request}, once=canonical_digest([request]), records=pairs)


def events(evidence, *kinds):
    with Ledger.open(evidence) as ledger:
        return ledger.events(*kinds)


def switches(evidence):
    return [e.body["id"] for e in events(evidence, "version", "rollback") if e.body["action"] in ("use", "rollback")]


@pytest.fixture
def two(evidence, base, make):
    """Two versions, the first in use."""
    first = add_version(evidence, make("first", base, forget=["a"], retain=["b"]).path)
    second = add_version(evidence, make("second", base, forget=["a"], retain=["b", "c"]).path)
    use(evidence, first)
    return first, second


# Content


def test_the_same_content_added_twice_is_one_version_and_one_event(evidence, base, make):
    run = make("run", base, forget=["a"], retain=["b"])
    first = add_version(evidence, run.path)
    copy = shutil.copytree(run.path, run.path.with_name("copy"))
    assert add_version(evidence, run) == add_version(evidence, copy) == first
    assert len(events(evidence, "version")) == 1
    assert source_digest(str(run.path)).removeprefix("sha256:").startswith(first)


def test_a_version_is_what_the_loader_takes_for_the_run(evidence, base, make):
    target = make("target", base, train=["a", "b"])
    run = make("run", target.path, forget=["a"], retain=["b"])
    version = add_version(evidence, run)
    for folder in (path_of(evidence, version), path_of(evidence, version).parent):
        assert source_digest(str(folder)) == source_digest(str(run.path))
    assert Run.open(path_of(evidence, version).parent).complete


def test_runs_beneath_are_added_first_and_outlive_their_folders(evidence, base, make):
    target = make("target", base, train=["a", "b"])
    run = make("run", target.path / "model", forget=["a"], retain=["b"])
    digest = source_digest(str(run.path))
    version = add_version(evidence, run)
    assert [(v.run, v.parent is None) for v, _, _ in versions(evidence)] == [("target", True), ("run", False)]
    shutil.rmtree(target.path)
    shutil.rmtree(run.path)
    use(evidence, version)
    assert source_digest(str(path_of(evidence))) == digest


def test_a_run_on_a_version_has_it_as_its_parent(evidence, base, make):
    first = add_version(evidence, make("first", base, forget=["a"], retain=["b"]))
    second = add_version(evidence, make("second", path_of(evidence, first), forget=["b"], retain=["c"]))
    assert {v.id: v.parent for v, _, _ in versions(evidence)} == {first: None, second: first}


def test_large_files_are_linked_where_that_is_possible_and_copied_elsewhere(evidence, base, make, monkeypatch):
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


def test_neither_ids_nor_paths_of_data_come_into_the_evidence(evidence, base, make):
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
def test_a_run_that_is_not_what_it_wrote_becomes_no_version(evidence, base, make, fault):
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


# Crashes


def test_killed_between_weights_and_ledger_the_next_time_makes_the_same_version(evidence, base, make, monkeypatch):
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


def test_what_the_ledger_knows_but_the_disk_lost_comes_back_as_the_same_version(evidence, base, make):
    run = make("run", base, forget=["a"], retain=["b"])
    version = add_version(evidence, run)
    shutil.rmtree(evidence / "versions" / version)
    with pytest.raises(EvidenceBroken, match="gone"):
        use(evidence, version)
    assert add_version(evidence, run) == version
    assert len(events(evidence, "version")) == 1
    use(evidence, version)


class FailingWrites:
    """Opening to write, flushing to disk and renaming fail from the given one on; counts them."""

    def __init__(self, monkeypatch, at):
        self.made = 0
        for module, name in ((os, "fsync"), (os, "replace"), (os, "mkdir")):
            self._replace(monkeypatch, module, name, at)
        opened = open

        def opening(file, mode="r", *rest, **named):
            if "w" in mode and not str(file).endswith(".lock"):
                self._count(at)
            return opened(file, mode, *rest, **named)

        monkeypatch.setattr("builtins.open", opening)

    def _replace(self, monkeypatch, module, name, at):
        original = getattr(module, name)

        def counted(*given, **named):
            self._count(at)
            return original(*given, **named)

        monkeypatch.setattr(module, name, counted)

    def _count(self, at):
        self.made += 1
        if self.made > at:
            raise OSError(errno.ENOSPC, "no space left on device")


def whole(evidence, ids):
    """The version in use, after all that must hold of a state was seen to hold."""
    now = current(evidence)
    with Ledger.open(evidence) as ledger:
        ledger.verify()
        for version in noted(ledger).values():
            store.check(evidence, version.id, version.about)
    assert now == switches(evidence)[-1] == json.loads((evidence / "versions" / "current.json").read_text())["id"]
    assert now in ids
    assert not list((evidence / "versions").rglob(".*.tmp"))
    return now


def test_whichever_write_of_a_switch_fails_the_old_or_the_new_version_is_in_use(evidence, two, monkeypatch):
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


def test_whichever_write_of_the_ledger_fails_the_old_version_stays_in_use(evidence, two):
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


def test_whichever_write_of_an_addition_fails_the_next_one_makes_the_version_once(evidence, base, make, monkeypatch):
    start = add_version(evidence, make("start", base, forget=["a"], retain=["b"]))
    use(evidence, start)
    number, failed = 0, True
    while failed:
        run = make(f"run-{number}", base, forget=["a"], retain=["b"])
        with monkeypatch.context() as patch:
            FailingWrites(patch, number)
            try:
                add_version(evidence, run)
                failed = False
            except OSError:  # which any of these writes may raise, and nothing else
                pass
        version = add_version(evidence, run)
        assert len([e for e in events(evidence, "version") if e.body["id"] == version]) == 1
        whole(evidence, [start])
        use(evidence, version)
        use(evidence, start)
        number += 1
    assert number > 10


def test_a_switch_that_is_killed_anywhere_leaves_the_old_or_the_new_version(evidence, two):
    worker = SUPPORT / "switch_worker.py"
    done = subprocess.run([sys.executable, worker, evidence, *two], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    killed = json.loads(done.stdout)
    assert killed["calls"] > 8
    assert killed["sqlite"] > 3
    assert killed["random"] == 50
    assert whole(evidence, two)


# Switching


def test_rollback_goes_back_through_what_was_in_use(evidence, base, make):
    ids = [add_version(evidence, make(name, base, forget=["a"], retain=["b"])) for name in "abc"]
    for version in ids:
        use(evidence, version)
    assert rollback(evidence) == ids[1] == current(evidence)
    assert rollback(evidence) == ids[0] == current(evidence)
    with pytest.raises(ValueError, match="no version was in use before"):
        rollback(evidence)
    assert rollback(evidence, ids[2][:5]) == ids[2] == current(evidence)
    assert [e.kind for e in events(evidence, "version", "rollback")][-3:] == ["rollback"] * 3


def test_the_version_in_use_taken_into_use_again_is_no_event(evidence, two):
    before = switches(evidence)
    assert use(evidence, two[0]) == two[0]
    assert switches(evidence) == before


@pytest.mark.parametrize("fault", ["bit", "gone", "more", "link", "version.json"])
def test_an_altered_version_is_not_taken_into_use(evidence, two, fault):
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


@pytest.mark.parametrize("change", ["bytes", "bytes with the time of before", "another file", "nothing"])
def test_a_rollback_reads_a_large_file_again_only_if_somebody_touched_it(evidence, two, monkeypatch, change):
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


def test_a_rollback_reads_a_large_file_again_that_was_too_new_to_tell_a_later_change_apart(evidence, two, monkeypatch):
    monkeypatch.setattr(store, "LINKED", 3)
    monkeypatch.setattr(store, "SETTLED", 3_600_000_000_000)
    use(evidence, two[1])
    use(evidence, two[0])
    read = []
    monkeypatch.setattr(store, "file_digest", lambda path: read.append(path.name) or file_digest(path))
    rollback(evidence, two[1])
    assert "adapter_model.safetensors" in read


def test_an_altered_version_beneath_is_found_too(evidence, base, make):
    target = make("target", base, train=["a", "b"])
    version = add_version(evidence, make("run", target.path, forget=["a"], retain=["b"]))
    beneath = next(v.id for v, _, _ in versions(evidence) if v.id != version)
    (path_of(evidence, beneath) / "model.safetensors").write_bytes(b"tarGet")
    with pytest.raises(AdapterRefused, match=beneath):
        use(evidence, version)


def test_a_damaged_version_is_mended_by_adding_its_run_again(evidence, base, make):
    run = make("run", base, forget=["a"], retain=["b"])
    version = add_version(evidence, run)
    (path_of(evidence, version) / "adapter_model.safetensors").write_bytes(b"x")
    assert add_version(evidence, run) == use(evidence, version) == version
    assert len(events(evidence, "version")) == 2  # added, used


def test_settings_are_those_of_the_ledger_whatever_config_yaml_says(evidence, two):
    config = path_of(evidence, two[1]).parent / "config.yaml"
    text = config.read_text()
    config.write_text(text.replace("hub-model", "other-model"))
    use(evidence, two[1])
    assert config.read_text() == text


def test_a_pointer_that_was_edited_is_what_the_ledger_says_again(evidence, two):
    pointer = evidence / "versions" / "current.json"
    text = pointer.read_text()
    for edited in ("{", "[]", text.replace(two[0], two[1])):
        pointer.write_text(edited)
        assert current(evidence) == two[0]
        assert pointer.read_text() == text


def test_a_pointer_ahead_of_the_ledger_shows_that_its_end_was_cut_off(evidence, two):
    shutil.copy(evidence / "ledger.db", evidence.with_name("older.db"))
    use(evidence, two[1])
    shutil.copy(evidence.with_name("older.db"), evidence / "ledger.db")
    with pytest.raises(EvidenceBroken, match="cut off"):
        current(evidence)


def test_a_ledger_that_was_altered_switches_nothing(evidence, two):
    import sqlite3

    connection = sqlite3.connect(evidence / "ledger.db")
    connection.execute("UPDATE events SET time = '2020-01-01T00:00:00+00:00' WHERE seq = 1")
    connection.commit()
    connection.close()
    with pytest.raises(EvidenceBroken, match="event 1"):
        use(evidence, two[1])


# Deleted data


@pytest.fixture
def chain(evidence, base, make):
    """A target trained on a, b and c; then a forgotten, then b on top of that."""
    target = make("target", base, train=["a", "b", "c"])
    without_a = make("without-a", target.path, forget=["a"], retain=["b", "c"])
    without_b = make("without-b", without_a.path, forget=["b"], retain=["c"])
    add_version(evidence, without_b)
    return {version.run: version.id for version, _, _ in versions(evidence)}


def unclean(evidence):
    return {version.run for version, _, deleted in versions(evidence) if deleted}


def test_going_back_to_before_a_deletion_is_refused_and_the_newest_clean_version_offered(evidence, chain):
    for run in ("target", "without-a"):
        use(evidence, chain[run])
    close(evidence, "a")
    with pytest.raises(ValueError, match=f"request R-1.*newest clean version is {chain['without-b']}"):
        rollback(evidence)
    with pytest.raises(ValueError, match="would bring it back"):
        use(evidence, chain["target"])
    assert current(evidence) == chain["without-a"]
    assert unclean(evidence) == {"target"}
    use(evidence, chain["without-b"])
    assert rollback(evidence) == chain["without-a"]  # forgot a, whatever its base saw


def test_a_version_that_rehearsed_what_was_deleted_later_is_refused(evidence, chain):
    use(evidence, chain["without-a"])
    use(evidence, chain["without-b"])
    close(evidence, "b", request="R-2")
    assert unclean(evidence) == {"target", "without-a"}
    with pytest.raises(ValueError, match="request R-2"):
        rollback(evidence)


def test_a_deletion_is_met_as_long_as_one_of_its_records_is_held(evidence, chain):
    close(evidence, "a", "b")
    assert unclean(evidence) == {"target", "without-a"}


def test_training_on_deleted_rows_again_brings_them_back(evidence, chain, make):
    again = make("again", path_of(evidence, chain["without-b"]), train=["b"])
    add_version(evidence, again)
    add_version(evidence, make("on-top", again.path, forget=["c"], retain=["d"]))
    close(evidence, "b")
    assert unclean(evidence) == {"target", "without-a", "again", "on-top"}


def test_an_oracle_on_the_same_base_is_clean_of_what_only_the_target_learned(evidence, chain, base, make):
    add_version(evidence, make("oracle", base, train=["b", "c"]))
    close(evidence, "a")
    assert unclean(evidence) == {"target"}


def test_what_was_unlearned_from_a_base_of_unknown_training_was_in_it(evidence, base, make):
    add_version(evidence, make("tuned", base, train=["x"]))
    add_version(evidence, make("rehearsed", base, forget=["y"], retain=["z"]))
    without = make("without", base, forget=["p"], retain=["q"])
    add_version(evidence, without)
    add_version(evidence, make("on-top", without.path, train=["x"]))
    close(evidence, "p")
    assert unclean(evidence) == {"tuned", "rehearsed"}


def test_what_fine_tuning_taught_was_not_in_its_base(evidence, chain, make):
    taught = make("taught", path_of(evidence, chain["without-b"]), train=["new"])
    add_version(evidence, make("without-new", taught.path, forget=["new"], retain=["c"]))
    close(evidence, "new")
    assert unclean(evidence) == {"taught"}


def test_what_only_rehearsal_shows_was_in_the_base_already(evidence, base, make):
    first = make("first", base, forget=["a"], retain=["b"])
    second = make("second", first.path, forget=["b"], retain=["c"])
    add_version(evidence, second)
    add_version(evidence, make("sibling", base, forget=["a"], retain=["c"]))
    close(evidence, "b")
    assert unclean(evidence) == {"first", "sibling"}  # nobody noted that the base knew b, but it did


def test_a_deletion_stays_one_after_its_key_was_destroyed(evidence, chain):
    close(evidence, "a")
    with Ledger.open(evidence) as ledger:
        ledger.forget_key("a")
        assert not ledger.about("a")
    assert unclean(evidence) == {"target"}


def test_a_run_whose_keys_were_destroyed_cannot_be_compared_with_what_is_asked_for_later(
    evidence, base, make, tmp_path
):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "config.json").write_text("{}")
    (elsewhere / "model.safetensors").write_bytes(b"another")
    target = make("target", base, train=["a", "b"])
    other = add_version(evidence, make("other", elsewhere, train=["a", "x"]))
    add_version(evidence, target)
    with Ledger.open(evidence) as ledger:
        assert ledger.forget_key("a")  # before anybody asked for it
    forgot = add_version(evidence, make("forgot", target.path, forget=["a"], retain=["b"]))
    close(evidence, "a")
    assert unclean(evidence) == {"target"}  # nothing links what 'other' learned to what was deleted
    with pytest.raises(ValueError, match=r"keys of rows of run 'other' were destroyed.*may be the same.*--unjudged"):
        use(evidence, other)
    use(evidence, forgot)


def test_destroying_keys_of_what_was_deleted_leaves_others_judged(evidence, chain, base, make):
    close(evidence, "a")
    with Ledger.open(evidence) as ledger:
        assert ledger.forget_key("a")
    new = make("new", base, train=["p", "q"])
    add_version(evidence, new)
    add_version(evidence, make("new-forgot", new.path, forget=["p"], retain=["q"]))
    close(evidence, "p", request="R-2")
    assert unclean(evidence) == {"target", "new"}
    use(evidence, chain["without-b"])


def test_an_old_run_that_is_noted_after_keys_were_destroyed_cannot_be_judged(evidence, chain, base, make):
    close(evidence, "a")
    late = make("late", base, train=["a", "x"])
    with Ledger.open(evidence) as ledger:
        assert ledger.forget_key("a")
    version = add_version(evidence, late)
    on_top = add_version(evidence, make("on-top", late.path, forget=["x"], retain=["y"]))
    assert unclean(evidence) == {"target"}
    for one in (version, on_top):
        with pytest.raises(
            ValueError, match=r"run 'late' was noted after 1 key was destroyed.*newest clean.*--unjudged"
        ):
            use(evidence, one)
        assert "cannot be judged" in told(evidence, "show", one)[1]
        asked = CliRunner().invoke(app, ["audit", "version", one, "--evidence", str(evidence)]).output
        assert "cannot be judged" in asked
        assert "holds no record" not in asked
    assert "cannot be judged" in told(evidence, "list")[1]
    use(evidence, chain["without-b"])
    assert told(evidence, "use", version, "--unjudged")[0] == 0
    assert events(evidence, "version")[-1].body["unjudged"] == "late"
    use(evidence, chain["without-b"])
    with pytest.raises(ValueError, match="cannot be judged"):
        rollback(evidence)
    assert rollback(evidence, unjudged=True) == version


def test_what_was_trained_after_keys_were_destroyed_is_taken_at_its_word(evidence, chain, base, make):
    close(evidence, "a")
    with Ledger.open(evidence) as ledger:
        ledger.forget_key("a")
    run = make("new", base, train=["x"])
    write_json(run.state_file, {**run.state, "finished": "2999-01-01T00:00:00+00:00"})
    use(evidence, add_version(evidence, run))


def test_keys_that_no_deletion_was_about_are_no_reason_for_doubt(evidence, chain, base, make):
    late = make("late", base, train=["x"])
    with Ledger.open(evidence) as ledger:
        ledger.forget_key("c")
    close(evidence, "a")
    use(evidence, add_version(evidence, late))


def test_a_path_of_a_version_that_holds_deleted_data_comes_with_a_warning(evidence, chain):
    use(evidence, chain["target"])
    arguments = ["versions", "show", "--path", "--evidence", str(evidence)]
    assert not CliRunner().invoke(app, arguments).stderr
    close(evidence, "a")
    done = CliRunner().invoke(app, arguments)
    assert (done.exit_code, done.stdout.strip()) == (0, str(path_of(evidence)))
    assert "holds data that was deleted (request R-1)" in done.stderr


def test_at_the_end_of_a_chain_the_rule_is_what_was_learned_and_not_unlearned_since(tmp_path):
    dice = random.Random(0)
    outcomes = set()
    for case in range(30):
        with Ledger.open(tmp_path / str(case), create=True) as ledger:
            held = set()
            for place in range(6):
                kind = dice.choice(["training", "unlearning"])
                records = set(dice.sample("abcdef", 2))
                held = held | records if kind == "training" else held - records
                body = {"weights": str(place), "base": {"digest": str(place - 1)}, "splits": ["train"]}
                ledger.append(kind, body, records=[(record, record) for record in records])
            for record in "abcdef":
                ledger.append("closed", {"request": record}, records=[(record, record)])
            assert {event.body["request"] for event in met(ledger, "5")} == held
            outcomes.add(len(held))
    assert len(outcomes) > 3


def test_asking_about_many_versions_and_deletions_stays_fast(tmp_path):
    with Ledger.open(tmp_path / "evidence", create=True) as ledger:
        records = [(str(number), str(number)) for number in range(2000)]
        ledger.append("training", {"weights": "0", "base": {"digest": "base"}, "splits": ["train"]}, records=records)
        for number in range(1, 61):
            about = {"weights": str(number), "base": {"digest": str(number - 1)}}
            deleted = records[number * 10 : number * 10 + 10]
            ledger.append("unlearning", {**about, "splits": ["forget"]}, records=deleted)
            ledger.append("training", {**about, "splits": ["retain"]}, records=records[1000:1200])
            ledger.append("closed", {"request": str(number)}, records=deleted)
        began = time.process_time()
        deletions = Deletions(ledger)
        assert [len(deletions.met(str(number))) for number in range(61)] == [60 - number for number in range(61)]
        assert time.process_time() - began < 5  # 0.1 s alone; minutes where each pair read the ledger anew


def test_a_request_that_was_closed_keeps_the_versions_of_before_from_coming_back(tmp_path, evidence):
    ids = [row["id"] for row in cases.rows()]
    target = cases.measured_run(tmp_path / "target", [], [], kind="finetune", train=ids)
    request = cases.received(evidence, cases.write_rows(tmp_path), subject="Ann")
    rest = [row_id for row_id in ids if row_id not in request.ids()]
    first = cases.measured_run(tmp_path / "first", request.ids(), rest, base=target, seed="first")
    use(evidence, add_version(evidence, target))
    use(evidence, add_version(evidence, first))
    assert cases.close(evidence, request.id, first)[1].closed
    with pytest.raises(ValueError, match=f"holds data that was deleted .request {request.id}.*newest clean"):
        rollback(evidence)
    second = cases.received(evidence, str(tmp_path / "rows.jsonl"), subject="Bob")
    rest = [row_id for row_id in rest if row_id not in second.ids()]
    on_top = cases.measured_run(tmp_path / "second", second.ids(), rest, base=first, seed="second")
    use(evidence, add_version(evidence, on_top))
    assert cases.close(evidence, second.id, on_top)[1].closed
    with pytest.raises(ValueError, match=second.id):
        rollback(evidence)
    assert unclean(evidence) == {"target", "first"}
    assert [run for run in told(evidence, "list")[1].splitlines() if " second " in run]


def test_with_no_clean_version_the_message_says_so(evidence, base, make):
    version = add_version(evidence, make("run", base, train=["a"]))
    close(evidence, "a")
    with pytest.raises(ValueError, match="no version is clean"):
        use(evidence, version)


def test_a_switch_that_was_cut_off_before_a_deletion_closed_shows_as_unclean(evidence, chain):
    use(evidence, chain["target"])
    close(evidence, "a")
    assert [(v.run, deleted) for v, used, deleted in versions(evidence) if used] == [("target", ["R-1"])]


# Purging


def test_a_purge_says_what_it_removes_and_removes_only_when_told(evidence, two):
    version = two[1]
    folder = path_of(evidence, version)
    arguments = ["versions", "purge", version, "--evidence", str(evidence)]
    said = CliRunner().invoke(app, arguments)
    assert said.exit_code == 0
    assert "adapter_model.safetensors" in said.output
    assert "nothing was removed" in said.output
    assert folder.is_dir()
    assert CliRunner().invoke(app, [*arguments, "--yes"]).exit_code == 0
    assert not folder.exists()
    assert [event.body["id"] for event in events(evidence, "purge")] == [version]
    with pytest.raises(ValueError, match="purged"):
        use(evidence, version)
    with pytest.raises(ValueError, match="purged"):
        path_of(evidence, version)
    with pytest.raises(ValueError, match="purged before"):
        purge(evidence, version)
    assert (evidence / "versions" / version / "version.json").is_file()


def test_neither_the_version_in_use_nor_one_beneath_another_is_purged(evidence, chain):
    use(evidence, chain["without-b"])
    for run, why in (("without-b", "in use"), ("target", "beneath"), ("without-a", "beneath")):
        with pytest.raises(ValueError, match=why):
            purge(evidence, chain[run])
    use(evidence, chain["target"])
    purge(evidence, chain["without-b"])
    purge(evidence, chain["without-a"])
    assert source_digest(str(path_of(evidence))) == next(v.weights for v, used, _ in versions(evidence) if used)


def test_a_purge_says_that_the_run_keeps_its_own_files(evidence, two, tmp_path):
    assert plan(evidence, two[1]).remaining == tmp_path / "second"
    shutil.rmtree(tmp_path / "second")
    assert plan(evidence, two[1]).remaining is None


def test_what_was_purged_is_added_again_unless_it_holds_deleted_data(evidence, base, make):
    run, other = make("run", base, train=["a"]), make("other", base, train=["b"])
    version = add_version(evidence, run)
    use(evidence, add_version(evidence, other))
    for _ in range(2):
        purge(evidence, version)
        assert add_version(evidence, run) == version
        path_of(evidence, version)
    purge(evidence, version)
    close(evidence, "a")
    with pytest.raises(ValueError, match="not kept again"):
        add_version(evidence, run)
    assert not any((store.folder_of(evidence, version) / part).exists() for part in ("model", "adapter"))


def test_a_purge_that_was_cut_off_is_finished_by_the_next(evidence, two, monkeypatch):
    def cut_off(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", cut_off)
    with pytest.raises(KeyboardInterrupt):
        purge(evidence, two[1])
    monkeypatch.undo()
    assert not events(evidence, "purge"), "the ledger never says more than was done"
    with pytest.raises(AdapterRefused, match="is gone"):
        use(evidence, two[1])
    assert not [path for path in (evidence / "versions").rglob(".*.tmp") if path.is_dir()]
    purge(evidence, two[1])
    assert len(events(evidence, "purge")) == 1


# As a user sees it


def told(evidence, *arguments):
    done = CliRunner().invoke(app, ["versions", *arguments, "--evidence", str(evidence)])
    return done.exit_code, done.output


def test_the_list_shows_where_versions_come_from_and_which_is_in_use(evidence, chain):
    use(evidence, chain["without-b"])
    close(evidence, "b")
    code, text = told(evidence, "list")
    lines = {run: line for line in text.splitlines() for run in chain if f" {run} " in line[30:55]}
    assert code == 0
    assert f"{chain['without-b']} *" in lines["without-b"]
    assert "yes" in lines["without-b"]
    assert "no: holds R-1" in lines["without-a"]
    assert "finetune" in lines["target"]


def test_show_prints_a_folder_that_evaluate_takes_as_a_model(evidence, two):
    code, text = told(evidence, "show", "--path")
    assert code == 0
    source = find_source(text.strip())
    assert [folder.parent.name for folder in source.adapters] == [two[0]]
    from llm_forget.workflows.evaluate import _configuration

    config, finished = _configuration(text.strip(), {})
    assert config == {"model_name_or_path": text.strip()}
    assert finished is None  # so nothing is written into the evidence
    code, text = told(evidence, "show")
    assert "verdicts  not evaluated" in text
    assert two[0] in text


def test_diff_names_data_settings_and_numbers(evidence, base, make):
    one, two = make("one", base, forget=["a"], retain=["b"]), make("two", base, forget=["a"], retain=["b", "c"])
    for run, value in ((one, 0.5), (two, 0.25)):
        line = {"value": value, "ci": None, "n": 1, "n_unscored": 0, "goal": "lower"}
        verdict = {"forgot": {"answer": "yes" if value < 0.3 else "no", "findings": []}}
        results = {"format": 2, "llm_forget": "0.1.0", "models": dict.fromkeys(("before", "unlearned", "oracle"))}
        results["suites"] = {"demo": {"metrics": {"probability": line}, "verdict": verdict}}
        write_json(run.results_file, results)
    config = two.config_file.read_text().replace("npo", "simnpo")
    two.config_file.write_text(config)
    ids = []
    for run in (one, two):
        ids.append(add_version(evidence, run))
    found = diff(evidence, *ids)
    assert found["settings"] == {"method": ("npo", "simnpo")}
    assert found["metrics"] == {"demo/probability": (0.5, 0.25), "demo: forgot": ("no", "yes")}
    assert set(found["data"]) == {"retain"}
    code, text = told(evidence, "diff", *ids)
    assert code == 0
    assert "simnpo" in text
    assert "0.25" in text


@pytest.mark.parametrize(
    "arguments", [("use", "nothing"), ("show",), ("rollback",), ("purge", "x"), ("diff", "a", "b"), ("add", "nowhere")]
)
def test_what_cannot_be_done_is_one_sentence(evidence, arguments):
    with Ledger.open(evidence, create=True):
        pass
    code, text = told(evidence, *arguments)
    assert code == 2
    assert text.startswith("llm-forget: ")
    assert text.count("\n") == 1


def test_the_list_stands_where_a_version_is_gone_and_for_those_who_may_only_read(evidence, two, monkeypatch):
    shutil.rmtree(evidence / "versions" / two[1])
    assert "gone" in told(evidence, "list")[1]
    monkeypatch.setattr(os, "access", lambda *_: False)
    (evidence / "versions" / "current.json").unlink()
    code, text = told(evidence, "list")
    assert code == 0
    assert f"{two[0]} *" in text
    assert not (evidence / "versions" / "current.json").exists()


def test_without_evidence_the_message_says_how_to_begin(tmp_path):
    code, text = told(tmp_path / "nothing", "list")
    assert code == 2
    assert "there is no ledger" in text
    assert not (tmp_path / "nothing").exists()


# Bits


def logits(path):
    from trl import ModelConfig

    model = load_base(ModelConfig(model_name_or_path=str(path)))
    with torch.no_grad():
        return model(torch.arange(3, 20)[None]).logits


def test_rollback_gives_the_same_bits(evidence, make_run):
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


def test_real_runs_on_each_other_become_versions_that_load_evaluate_and_answer_for_their_rows(
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
    ids = {version.run: version.id for version, _, _ in versions(evidence)}
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
