"""The files certificate.json, the certificate of a closed deletion request, and facts.json, from which it is made."""

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, UnsetType, field

from llm_forget.core.errors import EvidenceError
from llm_forget.core.formats._record import Count, Digest, Part, Record, Time, record
from llm_forget.core.formats.evidence import RowCounts, SearchedData
from llm_forget.core.formats.results import Answer, Outcome, Summary

REQUEST_ID = r"^req-[0-9]{4,12}(?!\n)$"  # Python's $ alone allows a newline at the end


class Exactness(Part, frozen=True):
    """The class of a deletion, such as *exact* or *approximate*, and a sentence that explains the class."""

    name: str = field(name="class")
    why: str


class ModelBefore(Part, frozen=True):
    """The model before the deletion, which knew the rows."""

    name: str
    digest: Digest
    knew: bool | UnsetType = UNSET  # false if the ledger has no model that knew the rows; this is then the base


class ModelAfter(Part, frozen=True):
    """The certified model or, if that model was merged, the run that was merged into it."""

    name: str
    digest: Digest
    kind: Literal["adapter", "model", "merged"]
    files: dict[str, Digest]


class Artefacts(Part, frozen=True):
    """The models before and after a deletion. If the model after it was merged, also the run and the merge."""

    before: ModelBefore
    after: ModelAfter
    run: ModelAfter | UnsetType = UNSET  # the run from which the model after was merged
    merged: dict[str, Any] | UnsetType = UNSET  # how the model after was merged


class DataDigest(Part, frozen=True):
    """Number and digest of the rows of a split."""

    rows: Count
    digest: str  # HMAC with the token of the request as the key


class Method(Part, frozen=True):
    """How the model after a deletion was trained: method, objective, settings and data."""

    name: str
    objective: Any
    gradient: Any
    seed: int | None
    steps: Count | None
    settings: dict[str, Any]
    data: dict[str, DataDigest]
    started: Time | None
    finished: Time | None
    calibrated: list[str] | UnsetType = UNSET  # settings chosen from measurements on holdout rows, in words


class CertifiedLine(Summary, frozen=True, kw_only=True):
    """A metric of a suite: its value for the unlearned model, for the model before unlearning, and for the oracle."""

    metric: str | UnsetType = UNSET
    goal: str | UnsetType = UNSET
    before: Summary | None
    oracle: Summary | None


class CertifiedSuite(Part, frozen=True):
    """The metrics of a suite, and the answers to its questions, such as ``forgot``."""

    metrics: dict[str, CertifiedLine]
    answers: dict[str, Answer]
    limit: int | None
    overrides: list[str]


class CertifiedRule(Part, frozen=True):
    """A rule of the policy, the value that it was applied to, and whether it holds (null: undetermined)."""

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
    attack: str | UnsetType = UNSET  # kind of attack, if the rule limits the excess of an attack


class CertifiedAttack(Part, frozen=True):
    """The excess of an attack by metric: how much more it recovered from the unlearned model than from the oracle."""

    kind: str
    suite: str
    limit: int | None
    excess: dict[str, float | None]


class CertifiedVerification(Part, frozen=True):
    """The outcome of a policy, its rules, and the models and suites to which they were applied."""

    policy: str
    answer: Outcome
    accepted_inconclusive: str | None  # reason for accepting an inconclusive outcome
    measured_with: str  # version of llm-forget
    models: dict[str, str | None]  # digest by role
    rules: list[CertifiedRule]
    suites: dict[str, CertifiedSuite]


@record("facts.json", error=EvidenceError)
class CertificateFacts(CertifiedVerification, Record, frozen=True):
    """The facts for a certificate, recorded when the request was closed. The ledger holds the digest of this file."""

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
    """One application of a policy before the request was closed, with its outcome."""

    time: Time
    run: str
    weights: Digest
    policy: str
    answer: Outcome


class ProtectedRows(Part, frozen=True):
    """Number of protected rows that the request removed, and the reason that was given."""

    rows: Count
    reason: str


class CertifiedRequest(Part, frozen=True):
    """The deletion request, with the values that the ledger records."""

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
    two_models: dict[str, Any]  # membership attack that compares the models before and after
    ledger: LedgerState
    does_not_show: dict[str, str]  # caveats: key to sentence


@record("certificate.json", error=EvidenceError, max_bytes=8 << 20)
class Certificate(Record, frozen=True, forbid_unknown_fields=True):
    """A signed certificate in canonical JSON. Its format number is ``version`` in ``body``."""

    body: CertificateBody
    signature: str  # base64
