"""Switches between two versions in processes that are killed, and looks at what is left; imports no torch.

    python switch_worker.py EVIDENCE FIRST SECOND KILLS

Prints how many were killed at which kind of place: KILLS at random ones, and at each of the others.
"""

import itertools
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from llm_forget.compliance.ledger.ledger import Ledger
from llm_forget.compliance.versions import store
from llm_forget.compliance.versions.versions import current, read_versions, use
from tests.support.broken_disk import broken_disk

# Calls before and after which a process is killed: those by which files change. SQLite's own are `broken_disk`'s.
CHANGING = {"write", "flush", "fsync", "replace"}


def in_a_child(work: Callable[[], None], kill_after: float | None = None) -> bool:
    """Whether the child was killed; it may not fail otherwise."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the child failed"
    return os.WIFSIGNALED(status)


def dying_at(number: int, work: Callable[[], None]) -> Callable[[], None]:
    def run() -> None:
        count = 0

        def watch(_: object, event: str, call: object) -> None:
            nonlocal count
            if event in ("c_call", "c_return") and getattr(call, "__name__", "") in CHANGING:
                if count == number:
                    os.kill(os.getpid(), signal.SIGKILL)
                count += 1

        sys.setprofile(watch)
        work()

    return run


def dying_in_sqlite_at(number: int, work: Callable[[], None]) -> Callable[[], None]:
    def run() -> None:
        with broken_disk(number, kill=True):
            work()

    return run


def look(evidence: Path, ids: tuple[str, str]) -> None:
    """Old or new, the pointer as the ledger says, every file as it was added."""
    file = evidence / "versions" / "current.json"
    left = json.loads(file.read_text())  # as other readers see it, before anything is finished
    with Ledger.open(evidence) as ledger:
        known = {e.digest: e.body["id"] for e in ledger.events("version") if e.body["action"] == "use"}
    assert left["event"] in list(known)[-2:], "the pointer is never ahead of the ledger, and at most one switch behind"
    assert left["id"] == known[left["event"]]
    now = current(evidence)
    assert now in ids, now
    with Ledger.open(evidence) as ledger:
        ledger.verify()
        switches = [e for e in ledger.events("version") if e.body["action"] == "use"]
        pointed = json.loads(file.read_text())
        assert pointed["id"] == now == switches[-1].body["id"]
        assert all(a.body["id"] == b.body["from"] for a, b in itertools.pairwise(switches))
        for version in read_versions(ledger).values():
            store.verify_files(evidence, version.id, version.about)
    assert not list((evidence / "versions").rglob(".*.tmp"))


def main(evidence: Path, ids: tuple[str, str], kills: int) -> dict[str, int]:
    killed = {"calls": 0, "sqlite": 0, "random": 0}

    def other() -> str:
        return ids[1] if current(evidence) == ids[0] else ids[0]

    for kind, dying in (("calls", dying_at), ("sqlite", dying_in_sqlite_at)):
        number, ended = 0, False
        while not ended:
            wanted = other()
            ended = not in_a_child(dying(number, lambda wanted=wanted: use(evidence, wanted)))
            look(evidence, ids)
            killed[kind] += not ended
            number += 1

    def forever() -> None:
        while True:
            use(evidence, other())

    dice = random.Random(0)
    for _ in range(kills):
        killed["random"] += in_a_child(forever, dice.uniform(0, 0.06))
        look(evidence, ids)
    return killed


if __name__ == "__main__":
    assert "torch" not in sys.modules
    found = main(Path(sys.argv[1]), (sys.argv[2], sys.argv[3]), int(sys.argv[4]))
    assert "torch" not in sys.modules, "a switch needs no torch"
    print(json.dumps(found))
