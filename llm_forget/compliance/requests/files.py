"""The folder of a deletion request: its permanent record, its lists of rows, and its lock.

``request.json`` has counts, dates and digests. ``rows.json`` and the lists of ids have row ids: only the owner of these
files can read them, and closing the request deletes them. No file has the text of a row.
"""

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
CATEGORIES = ("gdpr", "copyright", "safety", "other")
CLASSES = {  # signed in certificates: never change a text
    "exact": "retrained: no training that led to this model saw the rows",
    "differentially private": "the training bounded what any one row can change, by epsilon and delta",
    "approximate": "the weights were changed to behave as if they had not seen the rows",
    "suppressed": "the weights are those before; an adapter over them withholds the rows, and without it they are back",
}


@dataclass
class Request:
    """A deletion request: its folder and the content of request.json."""

    folder: Path
    content: dict[str, Any]

    @property
    def id(self) -> str:
        return self.folder.name

    @property
    def state(self) -> str:
        """The last step of the request, except amendments, or ``not received`` before the first step."""
        steps = [step["state"] for step in self.content["history"] if step["state"] != "amended"]
        return steps[-1] if steps else "not received"

    @property
    def closed(self) -> bool:
        return self.state == "closed"

    @property
    def rows(self) -> dict[str, Any]:
        """The content of rows.json, see `RequestedRows`. Raises EvidenceError if the request was closed."""
        if not (self.folder / ROWS).is_file():
            raise EvidenceError(f"request {self.id} is {self.state}; its list of rows was removed when it was closed")
        return formats.read_content(self.folder / ROWS, RequestedRows)

    def ids(self) -> list[str]:
        """Return the ids of all rows to forget."""
        rows = self.rows
        return [*rows["how"], *(rows["taken"] or ())]

    def pairs(self) -> Iterator[tuple[str, str]]:
        """Yield (row id, row id) for each row to forget and, if the row has a subject, (subject, row id)."""
        subjects = self.rows["subjects"]
        for row_id in self.ids():
            yield row_id, row_id
            if subjects.get(row_id, row_id) != row_id:
                yield subjects[row_id], row_id

    def times(self, state: str) -> str | None:
        """Return the time at which the request last reached a state; None if it never did."""
        return next((step["time"] for step in reversed(self.content["history"]) if step["state"] == state), None)


def list_requests(evidence: Path) -> list[Request]:
    """Return all requests of an evidence folder, ordered by number."""
    folders = (path.parent for path in (evidence / FOLDER).glob(f"req-*/{FILE}"))
    return [read_request(folder) for folder in sorted(folders, key=request_number)]


def refuse_open_requests(evidence: Path, names: Iterable[str]) -> None:
    """Raise EvidenceError if an open request is about one of these subjects or records: closing it needs their keys."""
    names = set(names)
    for request in list_requests(evidence):
        if request.closed:
            continue
        row_names = {name for pair in request.pairs() for name in pair} | {row["id"] for row in request.rows["near"]}
        if row_names & names:
            raise EvidenceError(f"request {request.id} is open and about some of these; close it before unlinking")


def find_request(evidence: Path, request_id: str) -> Request:
    """Return the request with this id. If it does not exist, raise EvidenceError and suggest a similar id."""
    folders = {path.parent.name: path.parent for path in (evidence / FOLDER).glob(f"req-*/{FILE}")}
    if request_id not in folders:
        raise EvidenceError(f"there is no request '{request_id}' in '{evidence}'; {did_you_mean(request_id, folders)}")
    return read_request(folders[request_id])


def create_request(root: Path, content: Mapping[str, Any], rows: Mapping[str, Any], last: int = 0) -> Request:
    """Create a request folder atomically and return the request. The caller must hold the lock of the requests.

    The number of the request is above ``last`` and above the numbers of all existing requests.
    """
    for leftover in root.glob(".*.new"):  # left by a killed process, with row ids
        shutil.rmtree(leftover, ignore_errors=True)
    temporary = root / f".{os.getpid()}-{secrets.token_hex(4)}.new"
    temporary.mkdir(mode=0o700, parents=True)
    try:
        write_rows(temporary, rows)
        formats.write(temporary / FILE, {"format": DeletionRequest.FORMAT, **content}, DeletionRequest)
        target = root / f"req-{1 + max([last, *map(request_number, root.glob('req-*'))]):04}"
        os.rename(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return read_request(target)


def remove_row_lists(request: Request) -> None:
    """Delete all files of a closed request that contain row ids or subjects."""
    for path in [request.folder / ROWS, *request.folder.glob("*.txt"), *request.folder.glob(".*.tmp")]:
        path.unlink(missing_ok=True)


def write_ids(folder: Path, split: str, ids: Sequence[str]) -> Path:
    """Write ids to a text file, one per line, and return its path. The file name contains a digest of the ids."""
    digest = canonical_digest(list(ids)).removeprefix("sha256:")[:12]
    path = folder / f"{split}-{digest}.txt"
    write_atomic(path, "".join(f"{row_id}\n" for row_id in ids), private=True)
    return path


def write_rows(folder: Path, rows: Mapping[str, Any]) -> None:
    """Write rows.json, readable by its owner only."""
    formats.write(folder / ROWS, rows, RequestedRows, private=True)


def read_request(folder: Path) -> Request:
    """Return the request in a folder."""
    return Request(folder, formats.read_content(folder / FILE, DeletionRequest))


def request_number(folder: Path) -> int:
    """Return the number in a folder name such as ``req-0001``; 0 for any other name."""
    match = re.fullmatch(r"req-(\d+)", folder.name)
    return int(match[1]) if match else 0


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold the exclusive lock of a file within a ``with`` block. If another process holds the lock, wait for it or, if
    ``wait`` is false, raise EvidenceError.
    """
    import fcntl  # not on Windows

    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise EvidenceError(f"another process works on request {path.parent.name}; wait or stop it") from None
        yield
