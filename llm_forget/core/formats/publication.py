"""Files of a published model, and the file of statements for its model card."""

from typing import Literal

from msgspec import UNSET, UnsetType, field

from llm_forget.core.errors import PublishError
from llm_forget.core.formats._record import Digest, Record, record


@record("published.json", error=PublishError, max_bytes=1 << 22)
class PublishedFiles(Record, frozen=True):
    """Digests of all other files of a published model, by file name; written by `push`."""

    files: dict[str, Digest]
    format: int | UnsetType = UNSET
    kind: Literal["adapter", "model"] | UnsetType = UNSET


@record("published.sig", error=PublishError, max_bytes=1 << 22)
class PublicationSignature(Record, frozen=True):
    """Signature of published.json with the key of an evidence folder, written by `push --evidence`."""

    key: str  # fingerprint
    signature: str  # base64


@record("card.json", error=PublishError)
class CardStatements(Record, frozen=True, forbid_unknown_fields=True):
    """Facts about a model that only the publisher knows; `card` writes the file. Null means not stated."""

    title: str | None = None
    category: str | None = None  # of the forgotten rows, such as "personal data of 12 people"; never the text
    contact: str | None = None
    license: str | None = None
    license_name: str | None = None  # for license "other": a licence that the Hub does not list
    license_link: str | None = None
    base_model: str | None = None  # Hub id, if training loaded it from a folder
    datasets: list[str] = field(default_factory=list)  # ids on the Hub
    intended_use: str | None = None
    power_watts: float | None = None  # drawn by the whole machine during training
