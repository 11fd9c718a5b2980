"""The documented exit codes, each from cheap commands on evidence and a run that are already there."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.frozen.command_line import call

MADE_BEFORE = Path(__file__).with_name("evidence_0_1")
LINE = "retain_probability"
CERTIFICATE = "evidence/requests/req-0001/certificate.json"
# Words of a command, and the code it exits with: 0 done, 1 failed, 2 cannot be done, 3 inconclusive, 4 adapter refused,
# 6 evidence broken. A full disk is 5, an interruption 130: see below.
CODES = [
    (0, ["--version"]),
    (0, ["recipes", "list"]),
    (0, ["methods", "npo"]),
    (0, ["audit", "verify"]),
    (0, ["request", "list", "--evidence", "missing"]),
    (0, ["certificate", "verify", CERTIFICATE, "--key", "evidence/signing.pub"]),
    (0, ["verify", "npo", "--policy", "passes.json"]),
    (0, ["scan-residue", "npo/config.yaml", "--canary", "absent.txt"]),
    (0, ["watch", "npo", "--once"]),
    (1, ["verify", "npo", "--policy", "fails.json"]),
    (1, ["scan-residue", "text.txt", "--canary", "present.txt"]),
    (2, ["nonsense"]),
    (2, ["verify", "npo", "--nonsense"]),
    (2, ["verify"]),
    (2, ["finetune"]),
    (2, ["finetune", "missing.yaml"]),
    (2, ["unlearn", "demo/missing"]),
    (2, ["recipes", "show", "demo/missing"]),
    (2, ["methods", "missing"]),
    (2, ["verify", "missing"]),
    (2, ["verify", "npo", "--policy", "missing.json"]),
    (2, ["audit", "verify", "--evidence", "missing"]),
    (2, ["audit", "show", "--kind", "missing"]),
    (2, ["certificate", "verify", "missing.json"]),
    (2, ["request", "show", "req-0009"]),
    (2, ["versions", "use", "missing"]),
    (3, ["verify", "npo", "--policy", "inconclusive.json"]),
    (3, ["certificate", "verify", CERTIFICATE]),
    (3, ["scan-residue", "empty", "--canary", "present.txt"]),
    (4, ["adopt", "pickled", "--output_dir", "adopted", "--trust"]),
    (4, ["adopt", "unmanifested", "--output_dir", "adopted"]),
    (6, ["certificate", "verify", "altered.json", "--key", "evidence/signing.pub"]),
    (6, ["certificate", "verify", CERTIFICATE, "--key", "other.pub"]),
    (6, ["audit", "verify", "--evidence", "altered"]),
]


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder holds a copy of `evidence_0_1`, policies, texts, and altered evidence."""
    pytest.importorskip("cryptography")
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    shutil.copytree(MADE_BEFORE, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LLM_FORGET_EVIDENCE", raising=False)
    rule = {"line": LINE, "of": "before"}
    for name, bound in (
        ("passes", {"at_least": 0.0001}),
        ("fails", {"at_least": 1000000.0}),
        ("inconclusive", {"at_least": 0.0001, "min_n": 10_000}),
    ):
        (tmp_path / f"{name}.json").write_text(json.dumps({"rules": [{**rule, **bound}]}))
    sentence = "The quick brown fox jumps over thirteen lazy dogs near the river"
    (tmp_path / "present.txt").write_text(sentence + "\n")
    (tmp_path / "absent.txt").write_text(sentence[::-1] + "\n")
    (tmp_path / "text.txt").write_text(f"Once: {sentence}.\n")
    (tmp_path / "empty").mkdir()
    certificate = (tmp_path / CERTIFICATE).read_text(encoding="utf-8")
    (tmp_path / "altered.json").write_text(certificate.replace('"npo', '"nqo', 1), encoding="utf-8")
    other = Ed25519PrivateKey.generate().public_key()
    (tmp_path / "other.pub").write_bytes(
        other.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    shutil.copytree(tmp_path / "evidence", tmp_path / "altered")
    with sqlite3.connect(tmp_path / "altered" / "ledger.db") as database:
        database.execute("UPDATE events SET time = '2020-01-01T00:00:00+00:00' WHERE seq = 2")
    database.close()
    shutil.copytree(tmp_path / "published", tmp_path / "unmanifested")
    (tmp_path / "unmanifested" / "manifest.json").unlink()
    (tmp_path / "pickled").mkdir()
    shutil.copyfile(tmp_path / "published" / "adapter_config.json", tmp_path / "pickled" / "adapter_config.json")
    (tmp_path / "pickled" / "adapter_model.bin").write_bytes(b"\x80\x04.")
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize(("code", "words"), CODES, ids=[" ".join(words) for _, words in CODES])
def test_commands_exit_with_the_documented_code(prepared: Path, code: int, words: list[str]) -> None:
    result = call(*words)
    assert result.exit_code == code, result.output


def _raise(error: BaseException) -> Callable[..., Any]:
    def fail(*_: Any) -> None:
        raise error

    return fail


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_exits_with_5(prepared: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setattr(os, "fsync", _raise(OSError(number, os.strerror(number))))
    assert call("verify", "npo", "--policy", "passes.json").exit_code == 5


def test_another_failed_write_exits_with_2(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", _raise(OSError(errno.EIO, "input/output error")))
    assert call("verify", "npo", "--policy", "passes.json").exit_code == 2


def test_an_interruption_exits_with_130(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", _raise(KeyboardInterrupt()))
    assert call("verify", "npo", "--policy", "passes.json").exit_code == 130
