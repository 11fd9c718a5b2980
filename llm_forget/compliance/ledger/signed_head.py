"""Write and read ``anchor.json``, the signed number and digest of the newest event, to detect a truncated ledger."""

from pathlib import Path
from typing import Any

from msgspec.structs import replace

from llm_forget.compliance.ledger.chain import now
from llm_forget.compliance.ledger.signing import PUBLIC, public_key, sign, verify_signature
from llm_forget.core import formats
from llm_forget.core.errors import EvidenceBroken, MissingFileError
from llm_forget.core.formats.evidence import SignedHead
from llm_forget.core.strict_json import canonical

FILE = "anchor.json"
PURPOSE = "llm-forget ledger head"  # part of the signed content, so signatures of other documents are refused


def write(folder: Path, seq: int, digest: str) -> Path:
    """Sign the head of a verified ledger, write it, and return the path. Create the signing key if it is missing."""
    unsigned = SignedHead(PURPOSE, SignedHead.FORMAT, seq, digest, now(), public_key(folder), signature="")
    formats.write(folder / FILE, replace(unsigned, signature=sign(folder, canonical(_body(unsigned)))))
    return folder / FILE


def read(folder: Path, copy: Path | None = None, public: Path | None = None) -> tuple[int, str] | None:
    """Verify a signed head and return the number and digest of its event, or None if the folder has no signed head.

    ``copy`` and ``public`` are copies of anchor.json and signing.pub that replace the files in the folder.
    Raises EvidenceBroken if the head is damaged or has another signer, MissingFileError if a given file does not exist.
    """
    path = copy or folder / FILE
    if not path.exists():
        if copy is None:
            return None
        raise MissingFileError(f"there is no signed head '{path}'; give the path of your copy of anchor.json")
    head = formats.read(path, SignedHead, advice="restore it from a copy", error=EvidenceBroken)
    if head.purpose != PURPOSE:
        raise EvidenceBroken(f"'{path}' is not the signed head of a ledger")
    try:
        verify_signature(public or folder / PUBLIC, canonical(_body(head)), head.signature)
    except EvidenceBroken as error:
        raise EvidenceBroken(f"'{path}': {error}") from None
    return head.seq, head.head


def _body(head: SignedHead) -> dict[str, Any]:
    """Return the content of a signed head without the signature. This is the content that is signed."""
    return {key: value for key, value in formats.plain(head).items() if key != "signature"}
