"""``anchor.json``: the number and digest of the ledger's last event, signed, so that a cut end is seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llm_forget.compliance.ledger.chain import now
from llm_forget.compliance.ledger.signing import PUBLIC, public_key, sign, verify_signature
from llm_forget.core.errors import EvidenceBroken
from llm_forget.core.files import write_json
from llm_forget.core.strict_json import canonical, strict_loads

FILE, FORMAT = "anchor.json", 1
PURPOSE = "llm-forget ledger head"  # is signed with it, so that no other signature of the key passes for an anchor


def write(folder: Path, seq: int, digest: str) -> Path:
    """Sign the head of a ledger that was verified; the key is made where there is none.

    Raises:
        ImportError, ValueError: see `signing_key`.
    """
    said = _said(seq, digest, now(), public_key(folder))
    write_json(folder / FILE, {**said, "signature": sign(folder, canonical(said))})
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
        raise FileNotFoundError(f"there is no signed head '{path}'; give the copy of anchor.json that was kept")
    try:
        content = strict_loads(path.read_bytes())
        said = _said(*(content[key] for key in ("seq", "head", "time", "public_key")))
        whole = content == {**said, "signature": content["signature"]}
        whole = whole and isinstance(said["seq"], int) and isinstance(content["signature"], str)
    except (ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        raise EvidenceBroken(f"'{path}' is not the signed head of a ledger as it was written")
    try:
        verify_signature(public or folder / PUBLIC, canonical(said), content["signature"])
    except EvidenceBroken as error:
        raise EvidenceBroken(f"'{path}': {error}") from None
    return content["seq"], content["head"]


def _said(seq: int, digest: str, time: str, public: str) -> dict[str, Any]:
    known = {"purpose": PURPOSE, "format": FORMAT, "seq": seq, "head": digest, "time": time}
    return {**known, "public_key": public}  # who trusts the key compares it with one that came another way
