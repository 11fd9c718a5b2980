"""JSON files of an evidence folder: versions, deletion requests, and the signed head of the ledger."""

from typing import Any, Literal

from msgspec import UNSET, UnsetType

from llm_forget.core.errors import EvidenceError
from llm_forget.core.formats._record import Count, Digest, Part, Record, Share, Time, record


@record("version.json", error=EvidenceError)
class Version(Record, frozen=True):
    """Description of a model version. Its id is made from ``weights``. The ledger holds the digest of this file."""

    format: int
    kind: str  # finetune, unlearn, merge, adopt, combine
    part: Literal["adapter", "model"]  # folder of the weights
    weights: Digest  # content digest of the whole model
    base: dict[str, Any]  # name and digest of what it was made from
    files: dict[str, Digest]  # in the folder of the weights
    config: dict[str, Any]  # settings of the run, without its data
    provenance: dict[str, Any]  # of the run, without ids of rows


@record("current.json", error=EvidenceError)
class CurrentVersion(Record, frozen=True):
    """The version in use, and the ledger event that put it in use."""

    id: str
    weights: Digest
    seq: Count  # number of the event
    event: Digest


@record(".compared.json", error=EvidenceError, max_bytes=1 << 20, root="files")
class ComparedFiles(Record, frozen=True):
    """State of the large files of versions when their digests were last checked."""

    files: dict[str, tuple[Digest | None, int, int, int, int]]  # path: digest, bytes, inode, mtime and ctime in ns


class SearchedData(Part, frozen=True):
    """The data set that was searched for the rows of a request."""

    digest: Digest
    rows: Count


class RowCounts(Part, frozen=True):
    """Numbers of rows of a request, by how they were matched."""

    rows: Count
    exact: Count
    normalised: Count
    same_text: Count
    near_listed: Count
    near_included: Count
    near_left: Count
    of: Count  # all rows of the data


class RequestStep(Part, frozen=True):
    """A step of a request, and the event of the ledger that records it."""

    state: str
    time: Time
    seq: Count
    digest: Digest
    said: Digest  # of the body of the event


class Attempt(Part, frozen=True):
    """A recipe that was run for a request."""

    output_dir: str
    digest: Digest  # of everything that decides the result
    executed: bool | UnsetType = UNSET


@record("request.json", format=2, error=EvidenceError)
class DeletionRequest(Record, frozen=True):
    """Counts, dates and steps of a deletion request. It holds no ids of rows."""

    format: int
    token: str  # key for digests of rows that the certificate shows
    category: str
    due: str | None  # YYYY-MM-DD
    authorised_by: str | None
    forced: bool  # received over a quota
    data: SearchedData
    counts: RowCounts
    history: list[RequestStep]
    attempts: list[Attempt]
    allow_protected: str | UnsetType = UNSET  # reason for removing protected rows
    protected: Count | UnsetType = UNSET


class NearDuplicate(Part, frozen=True):
    """A row that resembles a requested row."""

    id: str
    of: str
    how: str  # near, contains, excerpt
    similarity: Share


@record("rows.json", error=EvidenceError, strict=False, names_rows=True)
class RequestedRows(Record, frozen=True):
    """Ids of the rows of an open request. Only the owner can read the file; closing the request removes it."""

    source: Any  # the data, as a recipe names them
    how: dict[str, str]  # id of a matched row: exact, normalised or same text
    subjects: dict[str, str]
    said: dict[str, Digest]  # id: digest of the text of the row
    near: list[NearDuplicate]
    taken: list[str] | None  # near-duplicates to forget; null: undecided
    decision: Count
    allowed: list[str] | UnsetType = UNSET  # protected rows that may be removed


@record("anchor.json", error=EvidenceError, max_bytes=1 << 20)
class SignedHead(Record, frozen=True, forbid_unknown_fields=True):
    """Signed number and digest of the last event of the ledger, to detect a later removal of events."""

    purpose: str
    format: int
    seq: int
    head: Digest
    time: Time
    public_key: str  # PEM
    signature: str  # base64
