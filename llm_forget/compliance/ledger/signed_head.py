"""``anchor.json``: the number and digest of the ledger's last event, signed, so that a cut end is seen."""

from __future__ import annotations

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
PURPOSE = "llm-forget ledger head"  # is signed with it, so that no other signature of the key passes for an anchor


def write(folder: Path, seq: int, digest: str) -> Path:
    """Sign the head of a ledger that was verified; the key is made where there is none.

    Raises:
        ImportError, ValueError: see `signing_key`.
    """
    unsigned = SignedHead(PURPOSE, SignedHead.FORMAT, seq, digest, now(), public_key(folder), signature="")
    formats.write(folder / FILE, replace(unsigned, signature=sign(folder, canonical(_body(unsigned)))))
    return folder / FILE


def read(folder: Path, given: Path | None = None, public: Path | None = None) -> tuple[int, str] | None:
    """Number and digest of a signed head, after its signature was checked; None where the folder has none.

    Args:
        folder: the evidence, whose own anchor and ``signing.pub`` are taken where no others are given.
        given: an anchor that was kept elsewhere.
        public: the public key that was kept elsewhere; the one in the anchor is for people to look at.

    Raises:
        EvidenceBroken: it is damaged, or was not signed by this key.
        FileNotFoundError: a file that was given is not there.
    """
    path = given or folder / FILE
    if not path.exists():
        if given is None:
            return None
        raise MissingFileError(f"there is no signed head '{path}'; give the copy of anchor.json that was kept")
    head = formats.read(path, SignedHead, advice="restore it from a copy", error=EvidenceBroken)
    if head.purpose != PURPOSE:
        raise EvidenceBroken(f"'{path}' is not the signed head of a ledger")
    try:
        verify_signature(public or folder / PUBLIC, canonical(_body(head)), head.signature)
    except EvidenceBroken as error:
        raise EvidenceBroken(f"'{path}': {error}") from None
    return head.seq, head.head


def _body(head: SignedHead) -> dict[str, Any]:
    """What is signed. Whoever trusts the key compares it with a copy that came another way."""
    return {key: value for key, value in formats.plain(head).items() if key != "signature"}
