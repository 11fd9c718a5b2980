"""Sign evidence with an Ed25519 private key, and verify signatures with the public key.

Anyone who can read ``signing.key`` can sign as its owner: keep it secret. Send ``signing.pub`` to verifiers separately
from the evidence, since a forger could replace a key that is sent together with it.
"""

import base64
import binascii
import hashlib
import os
import stat
from pathlib import Path
from typing import Any

from llm_forget.core.errors import EvidenceBroken, EvidenceError, MissingFileError, MissingPackageError
from llm_forget.core.files import create_private, write_atomic

KEY, PUBLIC = "signing.key", "signing.pub"


def signing_key(folder: Path) -> Any:
    """Return the private key of an evidence folder. The first call creates it (mode 0600) and ``signing.pub``.

    Raises MissingPackageError without `cryptography`, EvidenceError if other users can read the key or it is invalid.
    """
    _require_cryptography()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    path = folder / KEY
    if not path.exists():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        create_private(path, _new_key())
    mode = stat.S_IMODE(path.stat().st_mode)
    if os.name == "posix" and mode & 0o077:
        raise EvidenceError(
            f"'{path}' can be read by others (mode {mode:o}); run `chmod 600 {path}`, or delete it to create a new key"
        )
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except (ValueError, TypeError):
        raise EvidenceError(f"'{path}' is not a private key in PEM form without a password") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise EvidenceError(f"'{path}' is not an Ed25519 key")
    public = _pem(key.public_key())
    if not (folder / PUBLIC).is_file():
        write_atomic(folder / PUBLIC, public)
    return key


def public_key(folder: Path) -> str:
    """Return the public key of an evidence folder as PEM text."""
    return _pem(signing_key(folder).public_key())


def fingerprint(public: str | bytes | Path) -> str:
    """Return the SHA-256 (``sha256:...``) of a public key in DER form. Equal keys have equal fingerprints."""
    key = _public(public)
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return "sha256:" + hashlib.sha256(der).hexdigest()


def sign(folder: Path, content: bytes) -> str:
    """Sign ``content`` with the key of an evidence folder, and return the Ed25519 signature (64 bytes) in Base64."""
    return base64.b64encode(signing_key(folder).sign(content)).decode("ascii")


def verify_signature(public: str | bytes | Path, content: bytes, signature: str) -> None:
    """Verify the signature of ``content`` with a public key, given as PEM text or as the path of a PEM file.

    Raises:
        EvidenceBroken: this key did not sign the content, or the signature is malformed.
        MissingPackageError: `cryptography` is not installed.
        MissingFileError: the key file does not exist.
        EvidenceError: the key is not an Ed25519 public key in PEM form.
    """
    key = _public(public)
    from cryptography.exceptions import InvalidSignature

    try:
        signature_bytes = base64.b64decode(signature.encode("ascii"), validate=True)
        if base64.b64encode(signature_bytes).decode() != signature:  # decoding ignores bits of the last letter
            raise EvidenceBroken("the signature is not valid base64")
        key.verify(signature_bytes, content)
    except (binascii.Error, UnicodeError):
        raise EvidenceBroken("the signature is not valid base64") from None
    except InvalidSignature:
        raise EvidenceBroken("the signature does not match: another key signed, or the content was changed") from None


def _public(public: str | bytes | Path) -> Any:
    _require_cryptography()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    text = public.encode() if isinstance(public, str) else public
    where = "the public key"
    if isinstance(text, Path) or b"-----BEGIN" not in text:
        path = Path(os.fsdecode(text))
        if not path.is_file():
            raise MissingFileError(f"there is no public key '{path}'; give the path of the signer's signing.pub")
        text, where = path.read_bytes(), f"'{path}'"
    try:
        key = load_pem_public_key(text)
    except (ValueError, UnsupportedAlgorithm):
        raise EvidenceError(f"{where} is not a public key in PEM form") from None
    if not isinstance(key, Ed25519PublicKey):
        raise EvidenceError(f"{where} is not an Ed25519 key")
    return key


def _new_key() -> bytes:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    return Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _pem(key: Any) -> str:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode("ascii")


def _require_cryptography() -> None:
    import importlib.util

    if importlib.util.find_spec("cryptography") is None:
        raise MissingPackageError("signatures need the package cryptography; run `pip install 'llm-forget[sign]'`")
