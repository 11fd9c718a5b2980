"""A process beside the tests that appends to a ledger: `ledger_worker.py append FOLDER N` or `killed FOLDER N`."""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from llm_forget.compliance.ledger.ledger import Ledger

MEMBERS = [(f"subject {n}", f"record {n}") for n in range(3)]


def append(folder: Path, count: int) -> None:
    """Append events, one of them the same in all processes, and print the numbers of those that were acknowledged."""
    with Ledger.open(folder, create=True) as ledger:
        # No power is lost: waiting for the disk would only let the processes meet less often.
        ledger.connection.execute("PRAGMA main.synchronous = OFF")
        for number in range(count):
            records = MEMBERS if number % 10 == 0 else []
            event = ledger.append("training", {"process": os.getpid(), "number": number}, records=records)
            print(event.seq, flush=True)
        ledger.append("version", {"version": "v1"}, once="sha256:of all")


def endlessly(folder: Path, acknowledged: Path) -> None:
    """Append, with and without records, until killed; what was acknowledged is said in a file."""
    with Ledger.open(folder) as ledger, acknowledged.open("ab", buffering=0) as said:
        while True:
            event = ledger.append("training", {"process": os.getpid()}, records=random.choice([MEMBERS, []]))
            said.write(f"{event.seq} {event.digest}\n".encode())


def killed(folder: Path, rounds: int) -> None:
    """Kill a process that appends, at random points; print what was acknowledged and found each time."""
    random.seed(0)
    with Ledger.open(folder, create=True) as ledger:
        ledger.append("training", {}, records=MEMBERS)
    acknowledged = folder.parent / "acknowledged"
    for _ in range(rounds):
        process = os.fork()
        if not process:
            endlessly(folder, acknowledged)
        time.sleep(random.uniform(0.002, 0.12))
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        with Ledger.open(folder) as ledger:
            ledger.verify()
            known = {f"{event.seq} {event.digest}" for event in ledger.events()}
            said = set(acknowledged.read_text().splitlines()) if acknowledged.is_file() else set()
            about = len(ledger.about("subject 0", "record 0"))
            noted = sum("records" in event.body for event in ledger.events())
            print(json.dumps({"lost": len(said - known), "said": len(said), "about": about, "noted": noted}))


if __name__ == "__main__":
    {"append": append, "killed": killed}[sys.argv[1]](Path(sys.argv[2]), int(sys.argv[3]))
