"""The whole way of a request in processes that are killed, and looks at what is left.

The current directory holds rows.jsonl, recipe.yaml, suite.yaml and policy.yaml, as `test_requests_cli` lays them out.
"""

import contextlib
import os
import random
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from pathlib import Path

from typer.testing import CliRunner

from llm_forget.cli.main import app
from llm_forget.compliance.certificates.certificate import verify
from llm_forget.compliance.ledger.ledger import Ledger
from llm_forget.compliance.ledger.record_runs import weights_of
from llm_forget.compliance.requests import files
from llm_forget.compliance.versions import versions
from llm_forget.core.run_directory import Run

EVIDENCE, RUN = Path("evidence"), Path("runs/npo-req-0001")
ADD = ("request", "add", "--subject", "Ann", "--data", "rows.jsonl", "--include_near", "near-0")
ONCE = ("unlearning", "training", "closed", "version")  # each: one event in the end, but for `version` an add and a use


def call(*words: str) -> str:
    done = CliRunner().invoke(app, list(words))
    assert done.exit_code == 0, f"{words}: {done.output} {done.exception!r}"
    return done.stdout


def whole_way() -> None:
    call(*ADD) if not is_closed() else None
    call("request", "run", "req-0001", "recipe.yaml")
    call("request", "close", "req-0001", "--run", str(RUN), "--policy", "policy.yaml")
    call("versions", "use", call("versions", "add", str(RUN)).strip().splitlines()[-1])
    call("certificate", "req-0001")
    call("audit", "anchor")


def is_closed() -> bool:
    with contextlib.suppress(ValueError), Ledger.open(EVIDENCE) as ledger:  # "there is no ledger"
        return bool(ledger.events("closed"))
    return False


def in_a_child(kill_after: float | None = None) -> bool:
    """Go the whole way; whether it was killed on it. It may not fail otherwise."""
    child = os.fork()
    if child == 0:
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            whole_way()
        except BaseException as error:
            sys.stderr.write(f"{error!r}\n")
            os._exit(1)
        os._exit(0)
    timer = threading.Timer(kill_after, os.kill, (child, signal.SIGKILL)) if kill_after is not None else None
    if timer is not None:
        timer.start()
    status = os.waitpid(child, 0)[1]
    if timer is not None:
        timer.cancel()
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "it failed"
    return os.WIFSIGNALED(status)


def look() -> str:
    """After a kill everything that is there is whole, and nothing says more than the ledger; the request's state."""
    if not (EVIDENCE / "ledger.db").is_file() or not (EVIDENCE / "ledger.db").stat().st_size:
        return "nothing"
    with contextlib.suppress(ValueError), Ledger.open(EVIDENCE) as ledger:  # "there is no ledger": it was just made
        ledger.verify()
        events = {event.digest for event in ledger.events()}
        for request in files.list_requests(EVIDENCE):
            assert {step["digest"] for step in request.content["history"]} <= events
    if Run(RUN).complete:
        assert weights_of(Run.open(RUN))
    for path in EVIDENCE.rglob("certificate.json"):
        assert verify(path, EVIDENCE / "signing.pub", evidence=EVIDENCE)
    found = files.list_requests(EVIDENCE)
    return found[0].state if found else "nothing"


def look_at_the_end(weights: bytes | None) -> bytes:
    """Exactly what a way that nobody disturbed leaves."""
    with Ledger.open(EVIDENCE) as ledger:
        ledger.verify()
        counts = Counter(event.kind for event in ledger.events())
        states = Counter(event.body["state"] for event in ledger.events("request"))
        pointed = versions.current_id(ledger)
    assert {kind: counts[kind] for kind in ONCE} == {"unlearning": 1, "training": 1, "closed": 1, "version": 2}, counts
    assert set(states) == {"received", "resolved", "decided", "running", "executed", "verified"}
    assert max(states.values()) == 1, states
    assert versions.current(EVIDENCE) == pointed
    assert verify(EVIDENCE / "requests/req-0001/certificate.json", EVIDENCE / "signing.pub", evidence=EVIDENCE)
    assert not [*EVIDENCE.rglob("*.txt"), *EVIDENCE.rglob("rows.json")]
    now = (RUN / "adapter/adapter_model.safetensors").read_bytes()
    assert weights in (None, now), "the same bits as without a kill"
    return now


def killed_ways(kills: int) -> dict[str, object]:
    """Kills, in which states they left requests, and how many ways were gone to their ends."""
    began = time.monotonic()
    assert not in_a_child()
    length = time.monotonic() - began
    weights = look_at_the_end(None)
    dice, killed, ended, left = random.Random(0), 0, 0, Counter()
    while killed < kills:
        shutil.rmtree(EVIDENCE, ignore_errors=True)
        shutil.rmtree("runs", ignore_errors=True)
        # At most half of the kills meet one way, so that at least two ways go to their ends, however slow the machine.
        last = min(kills, killed + max(1, kills // 2))
        # Every other kill is early: the state `running` takes most of the time.
        while killed < last and in_a_child(length * dice.random() ** (1 + 4 * (killed % 2))):
            killed += 1
            left[look()] += 1
        assert not in_a_child()
        look_at_the_end(weights)
        ended += 1
    return {"killed": killed, "left": dict(left), "ended": ended}
