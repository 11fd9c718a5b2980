"""A deletion request on disk: what may be kept, what names rows and is removed when it is closed, and who may write.

``request.json`` holds counts, dates and digests. What names rows lies beside it, readable by the owner only, while the
request is open: ``rows.json`` and the lists of ids that a run reads. Texts of rows are in none of it.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_forget.core import formats
from llm_forget.core.errors import EvidenceError
from llm_forget.core.files import write_atomic
from llm_forget.core.formats.evidence import DeletionRequest, RequestedRows
from llm_forget.core.registry import did_you_mean
from llm_forget.core.strict_json import canonical_digest

FOLDER, FILE, ROWS = "requests", "request.json", "rows.json"


@dataclass
class Request:
    """A request by its folder."""

    folder: Path
    content: dict[str, Any]

    @property
    def id(self) -> str:
        return self.folder.name

    @property
    def state(self) -> str:
        """The last step that the ledger has; an amendment is none."""
        steps = [step["state"] for step in self.content["history"] if step["state"] != "amended"]
        return steps[-1] if steps else "not received"

    @property
    def closed(self) -> bool:
        return self.state == "closed"

    @property
    def rows(self) -> dict[str, Any]:
        """``source``, ``how``, ``subjects``, ``near``, ``said`` (as of `matching.Match`) and decisions.

        These are ``taken`` (near-duplicates to forget, None: undecided) and ``allowed`` (see `limits`).
        """
        if not (self.folder / ROWS).is_file():
            raise EvidenceError(f"request {self.id} is {self.state}; its list of rows was removed when it was closed")
        return formats.read_content(self.folder / ROWS, RequestedRows)

    def ids(self) -> list[str]:
        """Ids of all rows to forget."""
        rows = self.rows
        return [*rows["how"], *(rows["taken"] or ())]

    def pairs(self) -> Iterator[tuple[str, str]]:
        """(subject, record id) of all rows to forget; each also as its own subject, as runs note it."""
        subjects = self.rows["subjects"]
        for row_id in self.ids():
            yield row_id, row_id
            if subjects.get(row_id, row_id) != row_id:
                yield subjects[row_id], row_id

    def times(self, state: str) -> str | None:
        """When a state was last reached."""
        return next((step["time"] for step in reversed(self.content["history"]) if step["state"] == state), None)


def listed(evidence: Path) -> list[Request]:
    """All requests, by number."""
    folders = (path.parent for path in (evidence / FOLDER).glob(f"req-*/{FILE}"))
    return [read(folder) for folder in sorted(folders, key=number)]


def refuse_open(evidence: Path, names: Iterable[str]) -> None:
    """Raise ValueError where a request that is still open is about one of these subjects or records.

    Closing makes keys where there are none, so that its hashes would be others than those of the training.
    """
    asked = set(names)
    for request in listed(evidence):
        if request.closed:
            continue
        about = {name for pair in request.pairs() for name in pair} | {one["id"] for one in request.rows["near"]}
        if about & asked:
            raise EvidenceError(f"request {request.id} is open and about some of these; close it first, then unlink")


def find(evidence: Path, request_id: str) -> Request:
    """A request by its id.

    Raises:
        ValueError: no such request; names the nearest.
    """
    known = {path.parent.name: path.parent for path in (evidence / FOLDER).glob(f"req-*/{FILE}")}
    if request_id not in known:
        raise EvidenceError(f"there is no request '{request_id}' in '{evidence}'; {did_you_mean(request_id, known)}")
    return read(known[request_id])


def create(root: Path, content: Mapping[str, Any], rows: Mapping[str, Any], last: int = 0) -> Request:
    """A request under the next number above ``last``, too; its folder appears whole or not at all. Under the lock."""
    for left in root.glob(".*.new"):  # of a process that was killed; it names rows
        shutil.rmtree(left, ignore_errors=True)
    fresh = root / f".{os.getpid()}-{secrets.token_hex(4)}.new"
    fresh.mkdir(mode=0o700, parents=True)
    try:
        write_rows(fresh, rows)
        formats.write(fresh / FILE, {"format": DeletionRequest.FORMAT, **content}, DeletionRequest)
        target = root / f"req-{1 + max([last, *map(number, root.glob('req-*'))]):04}"
        os.rename(fresh, target)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return read(target)


def forget_rows(request: Request) -> None:
    """Remove everything that names rows; of a closed request."""
    for path in [request.folder / ROWS, *request.folder.glob("*.txt"), *request.folder.glob(".*.tmp")]:
        path.unlink(missing_ok=True)


def write_ids(folder: Path, split: str, ids: Sequence[str]) -> Path:
    """A list of ids under a name that says which: other ids are another file, and so another run."""
    digest = canonical_digest(list(ids)).removeprefix("sha256:")[:12]
    path = folder / f"{split}-{digest}.txt"
    write_atomic(path, "".join(f"{row_id}\n" for row_id in ids), private=True)
    return path


def write_rows(folder: Path, rows: Mapping[str, Any]) -> None:
    """Write the rows of a request so that only the owner may read them."""
    formats.write(folder / ROWS, rows, RequestedRows, private=True)


def read(folder: Path) -> Request:
    """The request of a folder.

    Raises:
        ValueError: its file is of another version, or damaged.
    """
    return Request(folder, formats.read_content(folder / FILE, DeletionRequest))


def number(folder: Path) -> int:
    found = re.fullmatch(r"req-(\d+)", folder.name)
    return int(found[1]) if found else 0


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Nobody else is in such a block of the same path; ``wait`` for them, or refuse."""
    import fcntl  # not on Windows

    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise EvidenceError(
                f"another process works on request {path.parent.name}; wait for it or stop it"
            ) from None
        yield


CLASSES = {
    "exact": "retrained: no training that led to this model saw the rows",
    "differentially private": "the training bounded what any one row can change, by epsilon and delta",
    "approximate": "the weights were changed to behave as if they had not seen the rows",
    "suppressed": "the weights are those before; an adapter over them withholds the rows, and without it they are back",
}


CATEGORIES = ("gdpr", "copyright", "safety", "other")
