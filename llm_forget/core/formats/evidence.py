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
    base: dict[str, Any]  # name and digest of the model it was made from
    files: dict[str, Digest]  # in the folder of the weights
    config: dict[str, Any]  # settings of the run, without its data
    provenance: dict[str, Any]  # of the run, without ids of rows


@record("current.json", error=EvidenceError)
class CurrentVersion(Record, frozen=True):
    """The version in use, and the ledger event that switched to it."""

    id: str
    weights: Digest
    seq: Count  # number of the event
    event: Digest


@record(".compared.json", error=EvidenceError, max_bytes=1 << 20, root="files")
class ComparedFiles(Record, frozen=True):
    """Size, inode and times of the large files of versions at the last comparison of their digests."""

    files: dict[str, tuple[Digest | None, int, int, int, int]]  # path: digest, bytes, inode, mtime and ctime in ns


class SearchedData(Part, frozen=True):
    """Digest and size of the data set that was searched for the rows of a request."""

    digest: Digest
    rows: Count


class RowCounts(Part, frozen=True):
    """Numbers of rows that a request matched, by kind of match, and of near-duplicates."""

    rows: Count  # all rows to forget
    exact: Count
    normalised: Count
    same_text: Count
    near_listed: Count
    near_included: Count
    near_left: Count
    of: Count  # all rows of the searched data


class RequestStep(Part, frozen=True):
    """A step of a request, with number and digest of its event in the ledger."""

    state: str
    time: Time
    seq: Count
    digest: Digest
    said: Digest  # of the body of the event


class Attempt(Part, frozen=True):
    """A training run that was started for a request."""

    output_dir: str
    digest: Digest  # of all settings that affect the training
    executed: bool | UnsetType = UNSET


@record("request.json", format=2, error=EvidenceError)
class DeletionRequest(Record, frozen=True):
    """Counts, dates and steps of a deletion request. It holds no ids of rows."""

    format: int
    token: str  # secret key of the row digests in the certificate
    category: str
    due: str | None  # YYYY-MM-DD
    authorised_by: str | None
    forced: bool  # accepted although it exceeds a quota
    data: SearchedData
    counts: RowCounts
    history: list[RequestStep]
    attempts: list[Attempt]
    allow_protected: str | UnsetType = UNSET  # reason for removing protected rows
    protected: Count | UnsetType = UNSET


class NearDuplicate(Part, frozen=True):
    """A row that resembles a row of the request."""

    id: str
    of: str  # id of the row of the request
    how: str  # near, contains, excerpt
    similarity: Share


@record("rows.json", error=EvidenceError, strict=False, names_rows=True)
class RequestedRows(Record, frozen=True):
    """Ids of the rows of an open request. Only the owner can read the file; closing the request removes it."""

    source: Any  # the searched data, as in a recipe
    how: dict[str, str]  # id of a matched row: exact, normalised or same text
    subjects: dict[str, str]  # id: subject of the row
    said: dict[str, Digest]  # id: digest of the text of the row
    near: list[NearDuplicate]
    taken: list[str] | None  # ids of the near-duplicates to forget; null until this is decided
    decision: Count  # number of decisions so far
    allowed: list[str] | UnsetType = UNSET  # protected rows that may be removed


@record("anchor.json", error=EvidenceError, max_bytes=1 << 20)
class SignedHead(Record, frozen=True, forbid_unknown_fields=True):
    """Signed number and digest of the newest event of the ledger. They reveal a later removal of events."""

    purpose: str
    format: int
    seq: int
    head: Digest
    time: Time
    public_key: str  # PEM
    signature: str  # base64
