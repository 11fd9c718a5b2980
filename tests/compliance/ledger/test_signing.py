"""A signature says that the owner of the key signed exactly this; nothing else passes."""

import base64
import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("cryptography", reason="signatures need the extra 'sign'")

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from llm_forget.compliance.ledger.ledger import Ledger
from llm_forget.compliance.ledger.signing import fingerprint, public_key, sign, signing_key, verify_signature
from llm_forget.core.errors import EvidenceBroken
from llm_forget.core.strict_json import canonical

# RFC 8032, section 7.1, test 2.
SEED = bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")
SIGNED = bytes.fromhex(
    "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
    "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
)


def test_a_signature_equals_the_test_vector_of_rfc_8032(tmp_path: Path) -> None:
    key = ed25519.Ed25519PrivateKey.from_private_bytes(SEED)
    (tmp_path / "signing.key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    (tmp_path / "signing.key").chmod(0o600)
    assert base64.b64decode(sign(tmp_path, b"\x72")) == SIGNED
    verify_signature(tmp_path / "signing.pub", b"\x72", sign(tmp_path, b"\x72"))


@pytest.mark.slow
def test_every_changed_byte_of_content_or_signature_is_refused(tmp_path: Path) -> None:
    content, public = b"what was signed", public_key(tmp_path)
    signature = sign(tmp_path, content)
    verify_signature(public, content, signature)
    verify_signature(public.encode(), content, signature)
    for place in range(len(content)):
        changed = content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
        with pytest.raises(EvidenceBroken):
            verify_signature(public, changed, signature)
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=- é\n"
    for place in range(len(signature)):
        for letter in alphabet:
            if letter != signature[place]:
                with pytest.raises(EvidenceBroken):
                    verify_signature(public, content, signature[:place] + letter + signature[place + 1 :])
    for other in ("", signature + "=", signature + signature, signature[:-1], f" {signature}", signature[:40]):
        with pytest.raises(EvidenceBroken):
            verify_signature(public, content, other)


def test_another_key_is_refused(tmp_path: Path) -> None:
    signature = sign(tmp_path / "ours", b"content")
    with pytest.raises(EvidenceBroken, match="another key signed"):
        verify_signature(public_key(tmp_path / "theirs"), b"content", signature)
    assert fingerprint(public_key(tmp_path / "ours")) != fingerprint(public_key(tmp_path / "theirs"))


def test_the_key_is_created_once_and_readable_by_its_owner_only(tmp_path: Path) -> None:
    first = public_key(tmp_path / "evidence")
    assert public_key(tmp_path / "evidence") == first == (tmp_path / "evidence" / "signing.pub").read_text()
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "evidence").iterdir()}
    assert modes["signing.key"] == 0o600
    assert set(modes) == {"signing.key", "signing.pub"}, "no temporary file is left"


@pytest.mark.processes
def test_processes_that_create_a_key_at_once_get_the_same(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from llm_forget.compliance.ledger.signing import public_key; "
    command = [sys.executable, "-c", code + "print(public_key(Path(sys.argv[1])))", str(tmp_path)]
    made = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(4)]
    assert len({process.communicate()[0] for process in made}) == 1


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    signing_key(tmp_path)
    (tmp_path / "signing.key").chmod(0o640)
    with pytest.raises(ValueError, match=r"can be read by others .mode 640.; run `chmod 600"):
        sign(tmp_path, b"content")


@pytest.mark.parametrize("kind", ["another curve", "rsa", "a public key", "noise", "a private key as public"])
def test_a_key_of_another_kind_is_refused_in_one_sentence(tmp_path: Path, kind: str) -> None:
    other = {
        "another curve": lambda: ec.generate_private_key(ec.SECP256R1()),
        "rsa": lambda: rsa.generate_private_key(65537, 2048),
    }.get(kind, ed25519.Ed25519PrivateKey.generate)()
    private = other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    public = other.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    if kind != "a private key as public":
        (tmp_path / "signing.key").write_bytes({"a public key": public, "noise": b"\x00\xff"}.get(kind, private))
        (tmp_path / "signing.key").chmod(0o600)
        with pytest.raises(ValueError, match="is not a"):
            sign(tmp_path, b"content")
    if kind != "a public key":
        given = {"noise": b"-----BEGIN nothing", "a private key as public": private}.get(kind, public)
        with pytest.raises(ValueError, match="is not a"):
            verify_signature(given, b"content", base64.b64encode(bytes(64)).decode())


def test_a_missing_public_key_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no public key '.*nobody.pub'"):
        verify_signature(tmp_path / "nobody.pub", b"content", "")


@pytest.fixture
def anchored(tmp_path: Path) -> Path:
    """Evidence with three events and a signed head."""
    with Ledger.open(tmp_path / "evidence", create=True) as ledger:
        for number in range(3):
            ledger.append("training", {"number": number})
        ledger.anchor()
    return tmp_path / "evidence"


@pytest.mark.slow
def test_every_changed_letter_of_the_signed_head_is_refused(anchored: Path) -> None:
    path = anchored / "anchor.json"
    whole = path.read_text()
    said = json.loads(whole)
    passed = []
    for place in range(len(whole)):
        path.write_text(whole[:place] + chr(ord(whole[place]) ^ 1) + whole[place + 1 :])
        try:
            with Ledger.open(anchored) as ledger:
                ledger.verify()
            if json.loads(path.read_text()) != said:
                passed.append(place)
        except EvidenceBroken:
            continue
    assert passed == []


def test_a_signed_head_of_another_key_is_refused(anchored: Path, tmp_path: Path) -> None:
    shutil.copytree(anchored, tmp_path / "forged")
    for name in ("signing.key", "signing.pub", "anchor.json"):
        (tmp_path / "forged" / name).unlink()
    with Ledger.open(tmp_path / "forged") as ledger:
        forged = ledger.anchor()
    with Ledger.open(anchored) as ledger:
        with pytest.raises(EvidenceBroken, match="another key signed"):
            ledger.verify(forged)
        with pytest.raises(EvidenceBroken, match="another key signed"):
            ledger.verify(public=tmp_path / "forged" / "signing.pub")
        ledger.verify(forged, tmp_path / "forged" / "signing.pub")


def test_other_signed_content_is_not_accepted_as_a_head(anchored: Path) -> None:
    path = anchored / "anchor.json"
    said = json.loads(path.read_text())
    for change in (
        {"purpose": "certificate"},
        {"format": 2},
        {"more": 1},
        {"seq": "3"},
        {"seq": 2},
        {"signature": None},
    ):
        content = {key: value for key, value in {**said, **change}.items() if key != "signature"}
        signature = change.get("signature", sign(anchored, canonical(content)))
        path.write_text(json.dumps({**content, "signature": signature}))
        with Ledger.open(anchored) as ledger, pytest.raises(EvidenceBroken):
            ledger.verify()


def test_a_copy_of_the_anchor_reveals_a_replaced_ledger(anchored: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    for name in ("anchor.json", "signing.pub"):
        shutil.copy(anchored / name, kept / name)
    shutil.rmtree(anchored)
    with Ledger.open(anchored, create=True) as ledger:
        ledger.append("training", {"number": "another"})
        ledger.anchor()
        ledger.verify()
        with pytest.raises(EvidenceBroken, match="at event 2: it is missing"):
            ledger.verify(kept / "anchor.json", kept / "signing.pub")


def test_a_failed_write_of_the_anchor_leaves_the_old_one(anchored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = (anchored / "anchor.json").read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with Ledger.open(anchored) as ledger:
        ledger.append("merge", {})
        for call in ("fsync", "replace"):
            with monkeypatch.context() as patched:
                patched.setattr(os, call, full)
                with pytest.raises(OSError, match="No space"):
                    ledger.anchor()
            assert (anchored / "anchor.json").read_bytes() == old
            assert {path.name for path in anchored.iterdir()} <= {
                "anchor.json",
                "ledger.db",
                "signing.key",
                "signing.pub",
            }
        ledger.verify()


@pytest.mark.slow
def test_without_the_package_the_error_names_the_extra(anchored: Path) -> None:
    code = (
        "import sys; from importlib.machinery import PathFinder\n"
        "class Without(PathFinder):\n"
        "    @classmethod\n"
        "    def find_spec(cls, name, path=None, target=None):\n"
        "        return None if name.startswith('cryptography') else PathFinder.find_spec(name, path, target)\n"
        "sys.meta_path = [f for f in sys.meta_path if f is not PathFinder] + [Without]\n"
        "from llm_forget.cli.main import app\n"
        "app(['audit', 'verify', '--evidence', sys.argv[1]])\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(anchored)], capture_output=True, text=True)
    assert (done.returncode, "pip install 'llm-forget[sign]'" in done.stderr) == (2, True), done.stderr
