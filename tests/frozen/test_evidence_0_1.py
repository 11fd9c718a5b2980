"""Evidence, a run and a published adapter that version 0.1.0 wrote are read, verified and held to every byte."""

from __future__ import annotations

import json
import shutil
import sqlite3
from pathlib import Path

import pytest

from tests.frozen.command_line import call, succeed
from tests.support.loopback_hub import Repo, loopback_hub, talk_to

MADE_BEFORE = Path(__file__).with_name("evidence_0_1")
CERTIFICATE = "evidence/requests/req-0001/certificate.json"
HEAD = "sha256:f49418fca3c980d5140884c16b1b68d14c3a7fdca83acf1ebcc8714073c7dc55"  # of event 14: the push
KEY = ("--key", "evidence/signing.pub")


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder is a copy of `evidence_0_1`."""
    pytest.importorskip("cryptography")
    shutil.copytree(MADE_BEFORE, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    monkeypatch.delenv("LLM_FORGET_EVIDENCE", raising=False)
    return tmp_path / "copy"


def test_the_certificate_verifies_with_key_and_ledger(copied: Path) -> None:
    printed = succeed("certificate", "verify", CERTIFICATE, *KEY, "--evidence", "evidence", "--request", "req-0001")
    assert printed.startswith("valid")


@pytest.mark.slow
def test_every_hundredth_byte_of_the_certificate_counts(copied: Path) -> None:
    content = Path(CERTIFICATE).read_bytes()
    for place in range(0, len(content), 100):
        Path("flipped.json").write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        assert call("certificate", "verify", "flipped.json", *KEY).exit_code == 6, place


def test_the_ledger_verifies_up_to_its_signed_head(copied: Path) -> None:
    anchor = json.loads(Path("evidence/anchor.json").read_text(encoding="utf-8"))
    printed = succeed("audit", "verify", *KEY, "--anchor", "evidence/anchor.json")
    assert HEAD in printed
    assert f"event {anchor['seq']}" in printed


@pytest.mark.parametrize("column", ["time", "kind", "body", "previous", "digest"])
def test_one_altered_character_of_an_event_breaks_the_ledger(copied: Path, column: str) -> None:
    with sqlite3.connect("evidence/ledger.db") as database:
        (before,) = database.execute(f"SELECT {column} FROM events WHERE seq = 3").fetchone()
        place = len(before) // 2
        after = before[:place] + ("1" if before[place] != "1" else "2") + before[place + 1 :]
        database.execute(f"UPDATE events SET {column} = ? WHERE seq = 3", (after,))
    database.close()
    assert call("audit", "verify").exit_code == 6


def test_the_ledger_still_finds_a_record_and_the_models_that_learned_it(copied: Path) -> None:
    assert "npo" in succeed("audit", "record", "bob-0", "--subject", "Bob")
    assert call("audit", "record", "nobody-0").exit_code == 2


def test_versions_and_requests_are_listed(copied: Path) -> None:
    current = json.loads(Path("evidence/versions/current.json").read_text(encoding="utf-8"))["id"]
    assert f"{current} *" in succeed("versions", "list")
    assert current in succeed("versions", "show")
    assert "closed" in succeed("request", "list")
    assert "req-0001" in succeed("request", "show", "req-0001")


def test_a_certificate_is_issued_again_for_the_closed_request(copied: Path) -> None:
    succeed("certificate", "req-0001", "--output", "again.json")
    assert call("certificate", "verify", "again.json", "--evidence", "evidence").exit_code == 3  # a new key signed it


@pytest.mark.slow
def test_the_run_is_judged_and_reported_as_before(copied: Path) -> None:
    pytest.importorskip("matplotlib")
    before = json.loads(Path("npo/verify.json").read_text(encoding="utf-8"))
    Path("policy.json").write_text(
        json.dumps({"rules": [{"line": "retain_probability", "at_least": 0.0001, "of": "before"}]})
    )
    succeed("verify", "npo", "--policy", "policy.json")
    after = json.loads(Path("npo/verify.json").read_text(encoding="utf-8"))
    for content in (before, after):
        content.pop("policy")  # holds the digest of the policy's file
        for rule in content["rules"]:
            for prose in ("sentence", "why", "caution"):
                rule.pop(prose)
    assert after == before
    assert after["answer"] == "pass"
    succeed("report", "npo", "--output", "page.html")
    page = Path("page.html").read_text(encoding="utf-8")
    assert "forget_probability" in page
    assert "retain_probability" in page
    assert "relearn" in page
    succeed("watch", "npo", "--once")


@pytest.mark.slow
@pytest.mark.parametrize("altered", [None, "adapter_model.safetensors", "README.md", "published.json", "published.sig"])
def test_the_published_adapter_is_pulled_and_one_altered_byte_refused(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, altered: str | None
) -> None:
    files = {path.name: path.read_bytes() for path in Path("published").iterdir()}
    if altered is not None:
        place = len(files[altered]) // 2
        flipped = bytes([files[altered][place] ^ 1])
        files[altered] = files[altered][:place] + flipped + files[altered][place + 1 :]
    with loopback_hub() as hub:
        talk_to(hub, monkeypatch, tmp_path)
        hub.repos["org/name"] = Repo()
        hub.repos["org/name"].add("main", files, "pushed by 0.1.0")
        result = call("pull", "org/name", "pulled", *KEY)
    assert (result.exit_code == 0) == (altered is None), result.output
    assert Path("pulled").exists() == (altered is None)
