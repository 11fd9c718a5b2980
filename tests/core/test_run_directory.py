"""The run directory: old or new, never half; and checkpoints that say when they are whole."""

import contextlib
import errno
import gc
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from llm_forget.core.digests import file_digest
from llm_forget.core.files import read_json, write_atomic, write_json
from llm_forget.core.run_directory import Run
from llm_forget.training import checkpoints

IDENTITY = {"learning_rate": 1e-4, "method": "npo"}


def started(path: Path, **changes: object) -> Run:
    identity = {**IDENTITY, **changes}
    return Run.start(path, "unlearn", {**identity, "output_dir": str(path)}, identity, overwrite=False)


def test_an_unfinished_run_is_never_read_as_whole(tmp_path: Path) -> None:
    run = started(tmp_path / "r")
    with pytest.raises(ValueError, match="is incomplete; resume it with `llm-forget unlearn"):
        Run.open(run.path)
    run.finish()
    assert Run.open(run.path).config == {**IDENTITY, "output_dir": str(run.path)}


def test_a_run_is_taken_up_again_only_with_the_same_identity(tmp_path: Path) -> None:
    run = started(tmp_path / "r")
    assert started(tmp_path / "r").path == run.path
    with pytest.raises(ValueError, match="holds a run with another learning_rate; choose another output_dir"):
        started(tmp_path / "r", learning_rate=1.0)
    with pytest.raises(ValueError, match="holds a unlearn run"):
        Run.start(run.path, "finetune", {}, IDENTITY, overwrite=False)


def test_overwrite_deletes_a_run_but_never_other_files(tmp_path: Path) -> None:
    run = started(tmp_path / "r")
    (run.path / "old").touch()
    again = Run.start(run.path, "finetune", {}, {}, overwrite=True)
    assert not (again.path / "old").exists()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").touch()
    with pytest.raises(ValueError, match="holds files but no run"):
        Run.start(tmp_path / "photos", "unlearn", {}, {}, overwrite=True)


def test_opening_something_else_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"it has no run\.json"):
        Run.open(tmp_path)


def test_a_run_is_written_by_one_process_at_a_time(tmp_path: Path) -> None:
    run, same, other = Run(tmp_path / "r"), Run(tmp_path / "x" / ".." / "r"), Run(tmp_path / "s")
    with run.lock():
        other.lock().close()
        with pytest.raises(ValueError, match="is being written by another process"):
            same.lock()
    same.lock().close()


@pytest.mark.slow
def test_a_lock_leaves_no_file_behind_and_is_never_held_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    run = Run(tmp_path / "r")

    def fail() -> None:
        lock = run.lock()
        raise RuntimeError(lock)

    run.lock().close()
    with contextlib.suppress(RuntimeError):
        fail()
    gc.collect()
    assert not list((tmp_path / "tmp").iterdir())
    held = tmp_path / "held"
    held.touch()
    children = []
    for _ in range(4):
        if not (child := os.fork()):
            status = 0
            for _ in range(300):
                with contextlib.suppress(ValueError), run.lock():
                    try:
                        held.rename(tmp_path / "mine")  # fails where another process is in here, too
                        (tmp_path / "mine").rename(held)
                    except FileNotFoundError:
                        status = 1
            os._exit(status)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
    assert not list((tmp_path / "tmp").iterdir())


def test_a_link_in_the_place_of_a_lock_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    run = Run(tmp_path / "r")
    with run.lock():
        (lock,) = tmp_path.glob("*.lock")
    (tmp_path / "precious").write_text("precious")
    lock.symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match="symbolic links"):
        run.lock()
    assert (tmp_path / "precious").read_text() == "precious"


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"new": float("nan")})
    write_atomic(tmp_path / "b.txt", "text")
    assert read_json(path) == {"old": 1}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json", "b.txt"]


@pytest.mark.parametrize("private", [False, True])
def test_only_the_owner_can_read_a_private_file_while_it_is_written_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, private: bool
) -> None:
    modes: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda handle: modes.append(os.fstat(handle).st_mode & 0o777))
    before = os.umask(0o022)
    try:
        (tmp_path / f".a.{os.getpid()}.tmp").touch(0o666)  # left by a killed process
        write_atomic(tmp_path / "a", "text", private=private)
    finally:
        os.umask(before)
    assert [*modes, (tmp_path / "a").stat().st_mode & 0o777] == [0o600 if private else 0o644] * 2


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """The system writes no file beyond so many bytes, as on a disk that is nearly full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_fills_up_within_a_file_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write_json(path, {"old": 1})
    with files_of_at_most(100), pytest.raises(OSError, match="File too large"):
        write_json(path, {"new": list(range(1000))})
    assert read_json(path) == {"old": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_whatever_step_of_a_write_fails_the_old_file_stays_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "results.json"
    write_json(path, {"old": 1})
    with monkeypatch.context() as patched:
        patched.setattr(os, step, fail)
        with pytest.raises(OSError, match="No space left"):
            write_json(path, {"new": 2})
        with pytest.raises(OSError, match="No space left"):
            write_json(tmp_path / "never.json", {"new": 2})
    assert read_json(path) == {"old": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]
    write_json(path, {"new": 2})
    assert read_json(path) == {"new": 2}


def test_a_file_is_on_disk_before_it_takes_the_place_of_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, steps = tmp_path / "results.json", []
    write_json(path, {"old": 1})
    for name in ("fsync", "replace"):
        original = getattr(os, name)

        def watched(*args: Any, _name: str = name, _original: Any = original) -> None:
            steps.append((_name, read_json(path)))
            _original(*args)

        monkeypatch.setattr(os, name, watched)
    write_json(path, {"new": 2})
    assert steps == [("fsync", {"old": 1}), ("replace", {"old": 1})]
    assert read_json(path) == {"new": 2}


def test_broken_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{\n}}")
    with pytest.raises(ValueError, match=r"a\.json' is not valid JSON \(line 2\)"):
        read_json(tmp_path / "a.json")


def checkpoint(folder: Path, step: int) -> Path:
    path = folder / f"checkpoint-{step}"
    (path / "inner").mkdir(parents=True)
    (path / "optimizer.pt").write_bytes(bytes(range(100)))
    (path / "inner" / "rng_state.pth").write_bytes(b"abc")
    checkpoints.mark_complete(path)
    return path


def test_the_newest_whole_checkpoint_is_used(tmp_path: Path) -> None:
    checkpoint(tmp_path, 9)
    newest = checkpoint(tmp_path, 10)
    assert checkpoints.last_complete(tmp_path) == (newest, [])
    assert checkpoints.last_complete(tmp_path / "none") == (None, [])


@pytest.mark.parametrize("damage", ["missing", "cut", "flipped", "no marker", "bad marker"])
def test_a_damaged_checkpoint_is_skipped_with_a_warning(tmp_path: Path, damage: str) -> None:
    whole, broken = checkpoint(tmp_path, 4), checkpoint(tmp_path, 8)
    file = broken / "optimizer.pt"
    if damage == "missing":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:50])
    elif damage == "flipped":
        file.write_bytes(b"\x01" + file.read_bytes()[1:])
    elif damage == "no marker":
        (broken / checkpoints.MARKER).unlink()
    else:
        (broken / checkpoints.MARKER).write_text("{")
    found, sentences = checkpoints.last_complete(tmp_path)
    assert found == whole
    assert len(sentences) == 1
    assert sentences[0].startswith(f"skipped checkpoint '{broken}': ")


def test_file_digests_are_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert file_digest(tmp_path / "a") == "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_another_suite_is_measured_on_the_same_run(tmp_path: Path) -> None:
    """Also one whose identity was written when suites belonged to it."""
    run = started(tmp_path / "r", suite="demo")
    assert started(run.path, suite="basic").path == started(run.path).path == run.path
    with pytest.raises(ValueError, match="holds a run with another learning_rate; choose"):
        started(run.path, suite="basic", learning_rate=1.0)
