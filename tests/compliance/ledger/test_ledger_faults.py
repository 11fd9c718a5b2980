"""Disks that fail, processes that die, many that write at once: the ledger is old or new, never mixed, never forked."""

import contextlib
import errno
import json
import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from llm_forget.compliance.ledger.ledger import Event, Ledger
from tests.support.broken_disk import broken_disk
from tests.support.fault_positions import FAULTS, FaultPositions
from tests.support.repository import SUPPORT

WORKER = SUPPORT / "ledger_worker.py"
OLD = [("Ann", "ann-1"), ("Bob", "bob-1")]
NEW = [("Ann", "ann-2"), *((f"New {n}", f"new-{n}") for n in range(120))]  # enough for pages to be split


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Evidence with two events."""
    folder = tmp_path_factory.mktemp("before") / "evidence"
    with Ledger.open(folder, create=True) as ledger:
        ledger.append("training", {"run": "target"}, once="sha256:1", records=OLD)
        ledger.append("request", {"request": "r1"}, records=OLD[:1])
    return folder


def add(ledger: Ledger) -> object:
    """An event with old and new subjects."""
    return ledger.append("closed", {"request": "r1"}, once="sha256:3", records=NEW)


def add_without_records(ledger: Ledger) -> object:
    """An event that concerns the ledger alone."""
    return ledger.append("publish", {"to": "hub"}, once="sha256:3")


def forget(ledger: Ledger) -> object:
    """A key destroyed."""
    return ledger.destroy_keys(["Ann"])


def state(folder: Path) -> tuple[list[str], list[str], bool]:
    """Kinds of all events, those about the new subject, and whether the old one is known; after everything was read."""
    with Ledger.open(folder) as ledger:
        ledger.verify()
        kinds = [event.kind for event in ledger.events()]
        found = [event.kind for event in ledger.about("New 7")]
        known = bool(ledger.about("Ann"))
        subjects = ledger.connection.execute("SELECT COUNT(*) FROM keys.subjects").fetchone()[0]
    assert subjects == 2 + (120 if found else 0) - (not known), "keys and ledger say the same"
    return kinds, found, known


STATES = {
    add: (
        (["training", "request"], [], True),
        (["training", "request", "closed"], ["closed"], True),
    ),
    add_without_records: (
        (["training", "request"], [], True),
        (["training", "request", "publish"], [], True),
    ),
    forget: (
        (["training", "request"], [], True),
        (["training", "request", "erasure"], [], False),
    ),
}


def tried(before: Path, folder: Path, act: Callable[[Ledger], object], at: int, **fault: bool) -> tuple[bool, int]:
    """Do something on a disk that fails at a write; whether it was acknowledged, and how many writes there were."""
    shutil.copytree(before, folder)
    with Ledger.open(folder) as ledger, broken_disk(at, **fault) as made:
        try:
            act(ledger)
        except (OSError, ValueError):
            return False, len(made)
    return True, len(made)


def writes_of(before: Path, folder: Path, act: Callable[[Ledger], object]) -> int:
    """Number of writes where none fails."""
    acknowledged, count = tried(before, folder, act, sys.maxsize)
    assert acknowledged
    assert count > 8, "few writes"
    shutil.rmtree(folder)
    return count


@pytest.mark.slow
@FAULTS
@pytest.mark.parametrize("act", STATES, ids=lambda act: act.__name__)
@pytest.mark.parametrize("onwards", [True, False], ids=["full from there", "one write fails"])
def test_a_failed_write_leaves_old_or_new_and_is_not_acknowledged(
    before: Path, tmp_path: Path, act: Callable[[Ledger], object], onwards: bool, faults: FaultPositions
) -> None:
    old, new = STATES[act]
    folder = tmp_path / "evidence"
    count = writes_of(before, folder, act)
    for at in [*faults.of(count), count]:
        acknowledged, made = tried(before, folder, act, at, onwards=onwards)
        found = state(folder)
        assert found in (old, new), f"write {at}"
        assert found == new or not acknowledged, f"write {at}"
        with Ledger.open(folder) as ledger:
            act(ledger)
        assert state(folder) == new, f"done again after write {at}: exactly one event"
        shutil.rmtree(folder)
    assert made <= at, "the last fault was beyond the last write"


@pytest.mark.slow
@FAULTS
@pytest.mark.parametrize("act", STATES, ids=lambda act: act.__name__)
def test_a_process_killed_at_any_write_leaves_old_or_new(
    before: Path, tmp_path: Path, act: Callable[[Ledger], object], faults: FaultPositions
) -> None:
    old, new = STATES[act]
    folder = tmp_path / "evidence"
    count = writes_of(before, folder, act)
    for at in [*faults.of(count), count]:
        process = os.fork()
        if not process:
            with contextlib.suppress(BaseException):
                tried(before, folder, act, at, kill=True)
            os._exit(0)
        _, status = os.waitpid(process, 0)
        found = state(folder)
        assert found in (old, new), f"write {at}"
        assert found == new or os.WIFSIGNALED(status), f"write {at}"
        with Ledger.open(folder) as ledger:
            act(ledger)
        assert state(folder) == new, f"done again after write {at}: exactly one event"
        shutil.rmtree(folder)
    assert status == 0, "the last fault was beyond the last write"


def test_a_full_disk_raises_its_own_errno_and_loses_nothing(before: Path, tmp_path: Path) -> None:
    shutil.copytree(before, tmp_path / "evidence")
    with Ledger.open(tmp_path / "evidence") as ledger:
        with broken_disk(1), pytest.raises(OSError, match="no space is left for the evidence") as caught:
            add(ledger)
        assert caught.value.errno == errno.ENOSPC
        with broken_disk(2, error=errno.EIO), pytest.raises(OSError, match="could not be written or read"):
            add(ledger)
        assert ledger.head()[0] == 2
        add(ledger)
    assert state(tmp_path / "evidence") == STATES[add][1]


def test_a_file_size_limit_loses_nothing(before: Path, tmp_path: Path) -> None:
    folder = tmp_path / "evidence"
    shutil.copytree(before, folder)
    signals = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with Ledger.open(folder) as ledger:
            resource.setrlimit(resource.RLIMIT_FSIZE, ((folder / "ledger.db").stat().st_size + 5000, limits[1]))
            with pytest.raises(OSError, match=r"the evidence|the disk"):
                ledger.append("closed", {"long": "x" * 50_000})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, signals)
    assert state(folder) == STATES[add][0]


@pytest.mark.slow
@pytest.mark.processes
def test_eight_processes_lose_no_event_and_fork_no_chain(tmp_path: Path) -> None:
    folder = tmp_path / "evidence"
    command = [sys.executable, str(WORKER), "append", str(folder), "200"]
    workers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(8)]
    acknowledged = [int(line) for worker in workers for line in worker.communicate()[0].splitlines()]
    assert [worker.returncode for worker in workers] == [0] * 8
    assert len(acknowledged) == len(set(acknowledged)) == 1600
    with Ledger.open(folder) as ledger:
        ledger.verify()
        events = ledger.events()
        assert [event.seq for event in events] == list(range(1, 1602))
        assert {event.seq for event in events if event.kind == "training"} == set(acknowledged)
        written = {(event.body["process"], event.body["number"]) for event in events if event.kind == "training"}
        assert written == {(worker.pid, number) for worker in workers for number in range(200)}
        assert len(ledger.events("version")) == 1, "what all eight noted stands there once"
        assert len(ledger.about("subject 2", "record 2")) == 8 * 20, "all eight have one key for one subject"


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.parametrize("kills", [20, pytest.param(50, marks=pytest.mark.exhaustive)])
def test_processes_killed_at_random_points_lose_nothing_acknowledged(tmp_path: Path, kills: int) -> None:
    command = [sys.executable, str(WORKER), "killed", str(tmp_path / "evidence"), str(kills)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    rounds = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rounds) == kills
    assert [found["lost"] for found in rounds] == [0] * kills
    assert all(found["about"] == found["noted"] for found in rounds), "records and keys fit the events"
    assert rounds[-1]["said"] > 10


def as_nobody(act: Callable[[], str]) -> str:
    """What a process without root's rights gets; root may write into folders that are read-only."""
    reading, writing = os.pipe()
    process = os.fork()
    if not process:
        with contextlib.suppress(BaseException):
            if os.geteuid() == 0:
                os.setgid(65534)
                os.setuid(65534)
            os.write(writing, act().encode())
        os._exit(0)
    os.close(writing)
    os.waitpid(process, 0)
    with os.fdopen(reading) as said:
        return said.read()


def test_a_read_only_folder_can_be_verified_and_refuses_writes(before: Path, tmp_path: Path) -> None:
    folder = tmp_path / "evidence"
    shutil.copytree(before, folder)
    if os.geteuid() == 0:  # whose folders of tests others may not enter
        shutil.move(folder, folder := Path("/tmp") / f"llm-forget-evidence-{os.getpid()}")
    modes = {**dict.fromkeys(folder.iterdir(), 0o444), folder: 0o555}
    try:
        for path, mode in modes.items():
            path.chmod(mode)

        def act() -> str:
            said = []
            with Ledger.open(folder) as ledger:
                ledger.verify()
                said.append(str(len(ledger.events())))
                for change in (add, add_without_records, forget):
                    try:
                        change(ledger)
                    except PermissionError as error:
                        said.append(str(error))
                said.append(str(ledger.head()[0]))
            with Ledger.open(folder, create=True) as ledger:
                ledger.verify()
            try:
                Ledger.open(folder / "new", create=True)
            except PermissionError as error:
                said.append(str(error))
            return json.dumps(said)

        number, *sentences, head, new = json.loads(as_nobody(act))
        assert (number, head) == ("2", "2")
        assert len(sentences) == 3
        assert all("is not writable for you" in sentence for sentence in sentences)
        assert "is not writable for you" in new
    finally:
        if os.geteuid() == 0:
            shutil.rmtree(folder)
        else:
            folder.chmod(0o755)


def test_a_writer_that_never_ends_is_reported(before: Path, tmp_path: Path) -> None:
    folder = tmp_path / "evidence"
    shutil.copytree(before, folder)
    other = sqlite3.connect(folder / "ledger.db", isolation_level=None)
    with contextlib.closing(other), Ledger.open(folder) as ledger:
        ledger.connection.execute("PRAGMA busy_timeout = 50")
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(ValueError, match="another process has been writing"):
            add(ledger)
        assert ledger.head()[0] == 2, "readers are not kept out"
        other.execute("ROLLBACK")
        assert isinstance(add(ledger), Event)


@pytest.mark.slow
def test_many_records_take_little_memory(tmp_path: Path) -> None:
    with Ledger.open(tmp_path, create=True) as ledger:
        tracemalloc.start()
        try:
            event = ledger.append("training", {}, records=((f"s{n % 7000}", f"r{n}") for n in range(15_000)))
            ledger.verify()
            assert tracemalloc.get_traced_memory()[1] < 2 << 20
        finally:
            tracemalloc.stop()
        assert event.body["records"]["n"] == 15_000
        assert [found.seq for found in ledger.about("s6999", "r6999")] == [1]
