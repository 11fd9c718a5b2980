"""The certificate of a closed deletion request, and the file of facts from which it is made."""

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, UnsetType, field

from llm_forget.core.errors import EvidenceError
from llm_forget.core.formats._record import Count, Digest, Part, Record, Time, record
from llm_forget.core.formats.evidence import RowCounts, SearchedData
from llm_forget.core.formats.results import Answer, Outcome, Summary

REQUEST_ID = r"^req-[0-9]{4,12}(?!\n)$"  # Python's $ alone allows a newline at the end


class Exactness(Part, frozen=True):
    """The exactness class of a deletion, and the meaning of the class."""

    name: str = field(name="class")
    why: str


class ModelBefore(Part, frozen=True):
    """The model before the deletion, which knew the rows."""

    name: str
    digest: Digest
    knew: bool | UnsetType = UNSET  # false: no model that knew the rows is on record, and this is the base


class ModelAfter(Part, frozen=True):
    """The certified model, or a run from which it was merged."""

    name: str
    digest: Digest
    kind: Literal["adapter", "model", "merged"]
    files: dict[str, Digest]


class Artefacts(Part, frozen=True):
    """The model before a deletion and the one after it."""

    before: ModelBefore
    after: ModelAfter
    run: ModelAfter | UnsetType = UNSET  # the run from which the model after was merged
    merged: dict[str, Any] | UnsetType = UNSET  # how the model after was merged


class DataDigest(Part, frozen=True):
    """Number and digest of the rows of a split."""

    rows: Count
    digest: str  # keyed by the token of the request


class Method(Part, frozen=True):
    """How the model after a deletion was made."""

    name: str
    objective: Any
    gradient: Any
    seed: int | None
    steps: Count | None
    settings: dict[str, Any]
    data: dict[str, DataDigest]
    started: Time | None
    finished: Time | None
    calibrated: list[str] | UnsetType = UNSET  # what was set by the levels of holdout rows


class CertifiedLine(Summary, frozen=True, kw_only=True):
    """A named metric of a suite, measured on the unlearned model, the model before unlearning and the oracle."""

    metric: str | UnsetType = UNSET
    goal: str | UnsetType = UNSET
    before: Summary | None
    oracle: Summary | None


class CertifiedSuite(Part, frozen=True):
    """The metrics of a suite, and the answers to its questions."""

    metrics: dict[str, CertifiedLine]
    answers: dict[str, Answer]
    limit: int | None
    overrides: list[str]


class CertifiedRule(Part, frozen=True):
    """A rule of the policy and whether it holds."""

    suite: str | None
    severity: Literal["fail", "warn"]
    answer: Outcome
    caution: str
    line: str
    kind: Literal["at_most", "at_least", "within", "within_oracles"]
    amount: float
    of: Literal["oracle", "before"] | float | None
    interval: bool
    min_n: Count
    slack: float
    value: float | None
    compared_with: float | None
    holds: bool | None
    why: str
    sentence: str
    attack: str | UnsetType = UNSET  # kind of attack, if the bound is on its excess


class CertifiedAttack(Part, frozen=True):
    """Results of an attack: how much more it recovered from the unlearned model than from the oracle."""

    kind: str
    suite: str
    limit: int | None
    excess: dict[str, float | None]


class CertifiedVerification(Part, frozen=True):
    """The outcome of a policy, and the models and metrics that it checked."""

    policy: str
    answer: Outcome
    accepted_inconclusive: str | None  # the reason
    measured_with: str  # version of llm-forget
    models: dict[str, str | None]  # digest by role
    rules: list[CertifiedRule]
    suites: dict[str, CertifiedSuite]


@record("facts.json", error=EvidenceError)
class CertificateFacts(CertifiedVerification, Record, frozen=True):
    """Facts that were recorded when a request was closed; the ledger holds the digest of this file."""

    run: str
    weights: Digest
    exactness: Exactness
    artefacts: Artefacts
    method: Method
    environment: dict[str, Any]
    attacks: list[CertifiedAttack]


class EventReference(Part, frozen=True):
    """Number and digest of an event of the ledger."""

    seq: Count
    digest: Digest


class LedgerState(Part, frozen=True):
    """The event that closed the request, and the last event of the ledger when the certificate was issued."""

    closed: EventReference
    head: EventReference


class PolicyAttempt(Part, frozen=True):
    """The outcome of a policy that was applied before the request was closed."""

    time: Time
    run: str
    weights: Digest
    policy: str
    answer: Outcome


class ProtectedRows(Part, frozen=True):
    """Protected rows that were removed, and why."""

    rows: Count
    reason: str


class CertifiedRequest(Part, frozen=True):
    """The request as the ledger records it."""

    id: Annotated[str, Meta(pattern=REQUEST_ID)]
    category: str
    received: Time
    due: str | None
    due_at_first: str | None
    authorised_by: str | None
    protected_rows: ProtectedRows | None
    closed: Time
    deadline: Literal["met", "missed", "none"]
    counts: RowCounts
    data: SearchedData
    verified: Annotated[list[PolicyAttempt], Meta(min_length=1)]


class CertificateBody(Part, frozen=True, forbid_unknown_fields=True):
    """The part of a certificate that the issuer signs."""

    schema: Literal["llm-forget certificate of deletion"]
    version: Literal[1]
    issued: Time
    issued_with: str
    public_key: str  # PEM
    request: CertifiedRequest
    exactness: Exactness
    artefacts: Artefacts
    method: Method
    environment: dict[str, Any]
    attacks: list[CertifiedAttack]
    verification: CertifiedVerification
    two_models: dict[str, Any]  # the membership attack with both models
    ledger: LedgerState
    does_not_show: dict[str, str]  # subject: sentence


@record("certificate.json", error=EvidenceError, max_bytes=8 << 20)
class Certificate(Record, frozen=True, forbid_unknown_fields=True):
    """Signed claims about a closed request, in canonical JSON. The format number is ``version`` in ``body``."""

    body: CertificateBody
    signature: str  # base64
