"""Certificates: what they say follows from the evidence, and nobody can change it or pass another one off."""

import base64
import contextlib
import copy
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llm_forget.compliance.certificates import certificate, claims
from llm_forget.compliance.ledger.ledger import Ledger
from llm_forget.compliance.ledger.record_runs import note_run, weights_of
from llm_forget.compliance.ledger.signing import public_key, sign
from llm_forget.compliance.requests.certificate_facts import keyed_digest
from llm_forget.core import formats
from llm_forget.core.errors import EvidenceBroken
from llm_forget.core.formats.run import Provenance
from llm_forget.core.run_directory import Run
from llm_forget.core.strict_json import canonical, strict_loads
from tests.support import request_cases as cases
from tests.support.broken_disk import broken_disk
from tests.support.failing_disk import changes, failing, killed
from tests.support.fault_positions import FAULTS, FaultPositions
from tests.support.json_places import changed, places


@pytest.fixture(scope="module")
def evidence(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A closed request with a certificate."""
    folder = cases.closed(tmp_path_factory.mktemp("closed"), two_models=0.99)
    certificate.issue(folder, "req-0001")
    return folder


@pytest.fixture
def issued(evidence: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A folder with the certificate and the public key, and nothing else."""
    for name, path in (
        ("c.json", evidence / "requests/req-0001/certificate.json"),
        ("k.pub", evidence / "signing.pub"),
    ):
        shutil.copy(path, tmp_path / name)
    return tmp_path / "c.json", tmp_path / "k.pub"


def resigned(evidence: Path, file: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """The certificate with another body, signed by the owner of the key."""
    body = copy.deepcopy(strict_loads(file.read_bytes())["body"])
    change(body)
    signature = sign(evidence, certificate.PURPOSE + canonical(body))
    file.write_bytes(canonical({"body": body, "signature": signature}))
    return file


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The command in a folder, which must not need torch."""
    code = (
        "import sys\nclass No:\n def find_spec(self, name, path=None, target=None):\n"
        "  if name.partition('.')[0] in ('torch', 'transformers', 'datasets'): raise SystemExit('imports ' + name)\n"
        "sys.meta_path.insert(0, No())\nfrom llm_forget.cli.main import main\nmain()"
    )
    return subprocess.run(
        [sys.executable, "-c", code, "certificate", "verify", *words],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


# --- what it says


@pytest.mark.slow
def test_a_certificate_agrees_with_the_evidence(evidence: Path, issued: tuple[Path, Path]) -> None:
    body = certificate.verify(*issued, request="req-0001", evidence=evidence)
    assert body["exactness"]["class"] == "suppressed"
    assert body["request"]["counts"]["rows"] == 3
    assert body["request"]["deadline"] == "met"
    where = {"measured": True, "suite": "basic", "line": "mia_two_models"}
    assert body["two_models"] == {**where, "auc": 0.99, "ci": [0.94, 1.0], "n": 20, "oracle": 0.97}
    assert body["verification"]["suites"]["basic"]["metrics"]["forget_probability"]["ci"] == [0.05, pytest.approx(0.15)]
    assert {"copies", "weights", "equality", "attacks", "two models"} <= body["does_not_show"].keys()
    text = issued[0].read_text() + (evidence / "requests/req-0001/certificate.html").read_text()
    for secret in (cases.CANARY, "ann-0", "Ann", str(evidence)):
        assert secret not in text


@pytest.mark.slow
def test_a_certificate_says_that_the_two_model_attack_was_not_measured(tmp_path: Path) -> None:
    folder = cases.closed(tmp_path)
    path = certificate.issue(folder, "req-0001")
    body = certificate.verify(path, folder / "signing.pub")
    assert body["two_models"] == {"measured": False}
    assert "not measured" in body["does_not_show"]["two models"]
    assert "not measured" in path.with_suffix(".html").read_text()


@pytest.mark.slow
def test_a_certificate_names_near_duplicates_left_and_an_accepted_answer(tmp_path: Path) -> None:
    ann = cases.rows()[0]
    near = {**ann, "id": "near", "subject": "Bob", "answer": f"{ann['answer']} or so"}
    source, evidence = cases.write_rows(tmp_path, [*cases.rows(), near]), tmp_path / "evidence"
    made = cases.received(evidence, source, "none", subject="Ann", due="2020-01-01", category="copyright")
    others = [row["id"] for row in cases.rows() if row["subject"] != "Ann"] + ["near"]
    run = cases.measured_run(tmp_path / "run", made.ids(), others, n=1)
    cases.close(evidence, made.id, run, reason="too few <b>rows</b> to tell")
    path = certificate.issue(evidence, made.id)
    body = certificate.verify(path, evidence / "signing.pub")
    assert body["request"]["deadline"] == "missed"
    assert body["does_not_show"]["near-duplicates"].startswith("That near-duplicates are forgotten: 1 ")
    assert body["verification"]["accepted_inconclusive"] == "too few <b>rows</b> to tell"
    page = path.with_suffix(".html").read_text()
    assert "too few &lt;b&gt;rows&lt;/b&gt; to tell" in page
    assert "<b>" not in page
    assert "http" not in page.replace("http-equiv", "")


@pytest.mark.slow
def test_a_suite_that_is_not_satisfied_is_named(tmp_path: Path) -> None:
    evidence = cases.closed(tmp_path)
    body = json.loads(certificate.issue(evidence, "req-0001").read_text())["body"]
    assert "suites" not in body["does_not_show"]
    suites = copy.deepcopy(body["verification"]["suites"])
    next(iter(suites.values()))["answers"] = {"forgot": "yes", "private": "no"}
    said = claims.does_not_show({**body, **body["verification"], "suites": suites}, body["request"])
    assert "(private: no)" in said["suites"]


@pytest.mark.slow
def test_a_run_that_holdout_rows_calibrated_is_certified_as_calibrated_not_as_proved(tmp_path: Path) -> None:
    source, evidence = cases.write_rows(tmp_path), tmp_path / "evidence"
    request = cases.received(evidence, source, subject="Ann")
    run = Run(cases.measured_run(tmp_path / "run", request.ids(), cases.OTHERS))
    formats.update(run.provenance_file, Provenance, calibrated=["the step that is kept", "a of teacher divergence"])
    cases.close(evidence, request.id, run.path)
    path = certificate.issue(evidence, request.id)
    body = certificate.verify(path, evidence / "signing.pub")
    caveat = body["does_not_show"]["calibration"]
    assert "the step that is kept, a of teacher divergence" in caveat
    assert "calibration, not proof (arXiv:2607.19442)" in caveat
    assert "calibration, not proof" in path.with_suffix(".html").read_text()
    del body["does_not_show"]["calibration"]
    assert claims.contradiction(body) == "it omits a caveat"
    del body["method"]["calibrated"]
    assert claims.contradiction(body) is None, "the certificates of other runs have no such caveat"


@pytest.mark.slow
def test_the_two_model_attack_alone_is_not_called_an_attack_on_the_weights(tmp_path: Path) -> None:
    evidence = cases.closed(tmp_path, attacks=("two_models",))
    assert "attacks" in certificate.verify(certificate.issue(evidence, "req-0001"), None)["does_not_show"]
    evidence = cases.closed(tmp_path / "other", attacks=("two_models", "relearn"))
    body = certificate.verify(certificate.issue(evidence, "req-0001"), None)
    assert "attacks" not in body["does_not_show"]
    assert [(attack["kind"], attack["excess"]) for attack in body["attacks"]] == [
        ("relearn", {"forget_probability": 0.2}),
        ("two_models", {"forget_probability": 0.2}),
    ]


@pytest.mark.slow
def test_a_rule_on_an_attack_follows_from_the_attacks_in_the_certificate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule = {"attack": "relearn", "line": "forget_probability", "at_most": 0.25}
    monkeypatch.setitem(cases.POLICY, "rules", [*cases.POLICY["rules"], rule])
    evidence = cases.closed(tmp_path, attacks=("relearn",))
    body = certificate.verify(certificate.issue(evidence, "req-0001"), None)
    assert [(rule["value"], rule["holds"]) for rule in body["verification"]["rules"]] == [(0.1, True), (0.2, True)]
    assert claims.contradiction(body) is None
    body["attacks"][0]["excess"]["forget_probability"] = 0.9
    assert claims.contradiction(body) == "the rule on forget_probability does not follow from its numbers"


@pytest.mark.slow
def test_the_certificate_of_a_retrained_model_names_the_model_that_knew_the_rows_or_none(tmp_path: Path) -> None:
    everything = [row["id"] for row in cases.rows()]
    for noted in (True, False):
        folder = tmp_path / str(noted)
        source, evidence = cases.write_rows(folder), folder / "evidence"
        made = cases.received(evidence, source, subject="Ann")
        others = [name for name in everything if name not in made.ids()]
        knew = cases.measured_run(folder / "knew", [], [], kind="finetune", train=everything, seed="knew")
        if noted:
            with Ledger.open(evidence) as ledger:
                note_run(ledger, knew)
        anew = cases.measured_run(folder / "anew", [], [], kind="finetune", train=others, seed="anew")
        assert cases.close(evidence, made.id, anew)[1].closed
        body = certificate.verify(certificate.issue(evidence, made.id), evidence / "signing.pub", evidence=evidence)
        assert body["exactness"]["class"] == "exact"
        before = body["artefacts"]["before"]
        assert before["name"] == ("knew" if noted else "base")
        assert (before["digest"] == weights_of(Run(knew))) is noted
        assert ("before" in body["does_not_show"]) is not noted


@pytest.mark.slow
def test_a_digest_cannot_confirm_a_guess_of_the_rows(tmp_path: Path) -> None:
    evidence = cases.closed(tmp_path)
    body = certificate.verify(certificate.issue(evidence, "req-0001"), None)
    plain = Run(tmp_path / "run").provenance["data"]["forget"]["digest"]
    assert plain not in json.dumps(body)
    token = json.loads((evidence / "requests/req-0001/request.json").read_text())["token"]
    assert body["method"]["data"]["forget"]["digest"] == keyed_digest(token, plain)
    assert token not in json.dumps(body)


@pytest.mark.slow
def test_a_certificate_names_earlier_policies_that_failed(tmp_path: Path) -> None:
    source, evidence = cases.write_rows(tmp_path), tmp_path / "evidence"
    made = cases.received(evidence, source, subject="Ann")
    others = [row["id"] for row in cases.rows() if row["subject"] != "Ann"]
    run = cases.measured_run(tmp_path / "run", made.ids(), others, value=0.3)
    assert cases.close(evidence, made.id, run)[0] == "fail"
    assert cases.close(evidence, made.id, run, lax=True)[1].closed
    path = certificate.issue(evidence, made.id)
    body = certificate.verify(path, evidence / "signing.pub", evidence=evidence)
    assert [one["answer"] for one in body["request"]["verified"]] == ["fail", "pass"]
    assert "policy, own file" in body["does_not_show"]["other policies"]

    def hide(changed: dict[str, Any]) -> None:
        del changed["request"]["verified"][0], changed["does_not_show"]["other policies"]

    resigned(evidence, path, hide)
    assert certificate.verify(path, evidence / "signing.pub"), "a lie that only the ledger can tell"
    with pytest.raises(EvidenceBroken, match="another verified than the ledger"):
        certificate.verify(path, evidence / "signing.pub", evidence=evidence)


def test_an_open_request_has_no_certificate(tmp_path: Path) -> None:
    source, evidence = cases.write_rows(tmp_path), tmp_path / "evidence"
    made = cases.received(evidence, source, subject="Ann")
    with pytest.raises(ValueError, match="is resolved, not closed"):
        certificate.issue(evidence, made.id)


@pytest.mark.slow
def test_facts_changed_between_closing_and_issuing_are_refused(tmp_path: Path) -> None:
    evidence = cases.closed(tmp_path)
    facts = evidence / "requests/req-0001/facts.json"
    facts.write_text(facts.read_text().replace("0.1", "0.01", 1))
    with pytest.raises(EvidenceBroken, match="not the file that request req-0001 was closed with"):
        certificate.issue(evidence, "req-0001")


def test_dates_come_from_the_ledger_and_not_from_the_request_file(tmp_path: Path) -> None:
    evidence = cases.closed(tmp_path)
    path = evidence / "requests/req-0001/request.json"
    content = json.loads(path.read_text())
    content["due"] = content["history"][0]["time"] = "2001-01-01"
    path.write_text(json.dumps(content))
    body = certificate.verify(certificate.issue(evidence, "req-0001"), evidence / "signing.pub")
    assert body["request"]["received"] > "2002"
    assert body["request"]["due"] > "2002"


# --- who may change it


@pytest.mark.slow
@FAULTS
def test_every_flipped_byte_is_found(issued: tuple[Path, Path], faults: FaultPositions) -> None:
    file, key = issued
    data = file.read_bytes()
    for place in faults.of(len(data), size=200):
        for bits in (0x01, 0x20, 0x80):
            changed = bytearray(data)
            changed[place] ^= bits
            file.write_bytes(changed)
            with pytest.raises(EvidenceBroken):
                certificate.verify(file, key)
    file.write_bytes(data)
    assert certificate.verify(file, key)


@pytest.mark.slow
def test_every_cut_and_every_addition_at_the_end_is_found(issued: tuple[Path, Path]) -> None:
    file, key = issued
    data = file.read_bytes()
    others = [data[:end] for end in range(0, len(data), 7)]
    others += [data + more for more in (b"\n", b" ", b"\0", b"{}", data)] + [b"\xef\xbb\xbf" + data, b" " + data]
    for other in others:
        file.write_bytes(other)
        with pytest.raises(EvidenceBroken):
            certificate.verify(file, key)


@pytest.mark.slow
def test_the_same_content_in_another_form_is_refused(issued: tuple[Path, Path]) -> None:
    file, key = issued
    content = json.loads(file.read_bytes())
    signature = content["signature"]
    last = signature[-3]  # its lowest bits are not part of the 64 bytes
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    twin = f"{signature[:-3]}{letters[letters.index(last) + 1]}=="
    assert base64.b64decode(twin) == base64.b64decode(signature)
    forms = [json.dumps(content).encode(), json.dumps(content, indent=1).encode()]
    forms += [canonical({**content, "signature": twin}), canonical({**content, "note": "checked"})]
    forms += [canonical(content).replace(b'"version":1', b'"version":1.0'), canonical([content])]
    for form in forms:
        file.write_bytes(form)
        with pytest.raises(EvidenceBroken):
            certificate.verify(file, key)


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"null", b"[]", b"7", b'"x"', b"\xff\xfe", b'{"body":{},"signature":""}',
        b'{"body":[],"signature":1}',
        b'{"body":{},"body":{},"signature":""}', b'{"body":{"x":1e999},"signature":""}',
        b'{"body":{"x":NaN},"signature":""}',
        b'{"body":{"x":"\\ud800"},"signature":""}', b'{"body":{"x":"' + b"a" * 10_000_000 + b'"},"signature":""}',
        b"[" * 100_000, b'{"body":{"x":' + b"1" * 5000 + b'},"signature":""}', b'{"body":{"x":' * 70 + b"1" + b"}" * 70,
        b'{"body":{"public_key":"/etc/passwd"},"signature":"AAAA"}', b'{"body":{"public_key":7},"signature":"AAAA"}',
        b'{"body":{"public_key":"-----BEGIN PUBLIC KEY-----\\nx"},"signature":"AAAA"}',
        b'{"body":{"public_key":"-----BEGIN PUBLIC KEY-----\\nx"},"signature":"\xc3\xa9"}',
    ],
)  # fmt: skip
@pytest.mark.parametrize("trusted", [True, False])
def test_hostile_files_are_refused_in_one_sentence(issued: tuple[Path, Path], content: bytes, trusted: bool) -> None:
    file, key = issued
    file.write_bytes(content)
    with pytest.raises(EvidenceBroken) as caught:
        certificate.verify(file, key if trusted else None)
    assert len(str(caught.value)) < 400


def test_another_key_inside_the_file_is_refused(issued: tuple[Path, Path], tmp_path: Path) -> None:
    file, key = issued
    forger = tmp_path / "forger"
    forger.mkdir()
    resigned(forger, file, lambda body: body.update(public_key=public_key(forger)))
    assert certificate.verify(file, None), "integrity alone anybody can bring about"
    with pytest.raises(EvidenceBroken, match="another key signed"):
        certificate.verify(file, key)


def test_a_signature_of_other_content_by_the_same_key_is_refused(evidence: Path, issued: tuple[Path, Path]) -> None:
    file, key = issued
    content = strict_loads(file.read_bytes())
    for signed in (canonical(content["body"]), canonical(content), b""):
        file.write_bytes(canonical({**content, "signature": sign(evidence, signed)}))
        with pytest.raises(EvidenceBroken, match="does not match"):
            certificate.verify(file, key)


@pytest.mark.parametrize("change", [{"version": 0}, {"version": 2}, {"version": "1"}, {"schema": "receipt"}])
def test_another_schema_is_refused(evidence: Path, issued: tuple[Path, Path], change: dict[str, Any]) -> None:
    file, key = issued
    with pytest.raises(EvidenceBroken, match="not a certificate in version 1"):
        certificate.verify(resigned(evidence, file, lambda body: body.update(change)), key)


@pytest.mark.slow
def test_the_certificate_of_another_request_is_refused(issued: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(EvidenceBroken, match="about request req-0001, not req-0002"):
        certificate.verify(*issued, request="req-0002")
    other = cases.closed(tmp_path / "other", seed="other")
    path = certificate.issue(other, "req-0001")
    one, two = (strict_loads(file.read_bytes()) for file in (issued[0], path))
    issued[0].write_bytes(canonical({"body": two["body"], "signature": one["signature"]}))
    with pytest.raises(EvidenceBroken, match="does not match"):
        certificate.verify(*issued)


def set_in(body: dict[str, Any], path: str, value: Any) -> None:
    *way, last = path.split("/")
    for key in way:
        body = body[int(key)] if isinstance(body, list) else body[key]
    body[int(last) if isinstance(body, list) else last] = value  # type: ignore[index]


LINE = "verification/suites/basic/metrics/forget_probability"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("does_not_show", {}),
        ("does_not_show", {"copies": "Nothing."}),
        ("does_not_show/weights", " "),
        ("does_not_show", []),
        ("exactness/class", "exact"),
        ("exactness/class", "erased"),
        ("artefacts/after/kind", "model"),
        ("request/counts/rows", 2),
        ("request/counts/rows", -3),
        ("request/counts/exact", 30),
        ("request/counts/of", 3),
        ("request/deadline", "none"),
        ("request/closed", "2999-01-01T00:00:00+00:00"),
        ("request", None),
        ("request/id", "req-\x1b[2J"),
        ("request/category", "<script>"),
        ("two_models", {"measured": False}),
        ("two_models/auc", 0.5),
        (f"{LINE}/value", 0.8),
        (f"{LINE}/oracle", None),
        (f"{LINE}/n", 1),
        ("verification/rules/0/holds", False),
        ("verification/rules/0/amount", 0.5),
        ("verification/rules", []),
        ("verification/answer", "fail"),
        ("verification/answer", "inconclusive"),
        ("verification/suites", {}),
        ("verification/policy", "strict"),
        ("request/verified", []),
        ("ledger/head/seq", 0),
        ("ledger", {}),
        ("extra", 1),
    ],
)
def test_a_signed_but_false_claim_is_refused(evidence: Path, issued: tuple[Path, Path], path: str, value: Any) -> None:
    file, key = issued
    resigned(evidence, file, lambda body: set_in(body, path, value))
    wrong = r"contradicts itself|': key 'body\.|' (lacks the|has an unknown) key 'body\."
    with pytest.raises(EvidenceBroken, match=wrong):
        certificate.verify(file, key)


WRONG = (None, -1, "x", [], {})


@pytest.mark.slow
@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.exhaustive)])
def test_a_signed_part_of_another_type_or_that_is_missing_raises_nothing_but_evidence_broken(
    evidence: Path, issued: tuple[Path, Path], every: bool
) -> None:
    file, key = issued
    body = strict_loads(file.read_bytes())["body"]
    paths, refused = [*places(body)], 0
    for number, path in enumerate(paths):
        for wrong in (..., *(WRONG if every else [WRONG[number % len(WRONG)]])):
            resigned(evidence, file, lambda old, path=path, wrong=wrong: replace_all(old, changed(body, path, wrong)))
            with contextlib.suppress(EvidenceBroken):  # any other exception is a fault of the reader
                certificate.verify(file, key)
                continue
            refused += 1
    assert refused > len(paths) > 100


def replace_all(old: dict[str, Any], new: dict[str, Any]) -> None:
    """Make a mapping equal to another one."""
    old.clear()
    old.update(new)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("ledger/closed/digest", "sha256:" + "1" * 64),
        ("ledger/closed/seq", 1),
        ("ledger/head/digest", "sha256:" + "1" * 64),
        ("ledger/head/seq", 99),
        ("artefacts/after/digest", "sha256:" + "1" * 64),
        ("request/id", "req-0002"),
        ("request/category", "other"),
        ("request/received", "2001-01-01T00:00:00+00:00"),
    ],
)
def test_claims_that_contradict_a_given_ledger_are_refused(
    evidence: Path, issued: tuple[Path, Path], path: str, value: Any
) -> None:
    file, key = issued
    resigned(evidence, file, lambda body: set_in(body, path, value))
    with pytest.raises(EvidenceBroken, match=r"ledger|truncated|its last verification"):
        certificate.verify(file, key, evidence=evidence)


# --- issuing


def test_issuing_again_gives_the_same_bytes(evidence: Path) -> None:
    path = evidence / "requests/req-0001/certificate.json"
    before = path.read_bytes()
    path.with_suffix(".html").unlink()
    with Ledger.open(evidence) as ledger:
        ledger.append("publish", {"to": "hub"})
    assert certificate.issue(evidence, "req-0001").read_bytes() == before
    assert path.with_suffix(".html").is_file()


def test_a_file_that_is_not_a_certificate_is_not_overwritten(evidence: Path, tmp_path: Path) -> None:
    taken = tmp_path / "taken.json"
    taken.write_text("{}")
    with pytest.raises(EvidenceBroken):
        certificate.issue(evidence, "req-0001", taken)
    assert taken.read_text() == "{}"
    with pytest.raises(ValueError, match="ends in"):
        certificate.issue(evidence, "req-0001", tmp_path / "c.txt")


def without_certificate(evidence: Path, folder: Path, *others: str) -> Path:
    """A copy of evidence whose certificate was not issued yet."""
    return Path(shutil.copytree(evidence, folder, ignore=shutil.ignore_patterns("certificate.*", *others)))


@pytest.mark.slow
@FAULTS
@pytest.mark.parametrize("disk", [failing, broken_disk])
def test_a_failing_disk_leaves_a_complete_certificate_or_none(
    evidence: Path, tmp_path: Path, disk: Any, faults: FaultPositions
) -> None:
    folder = without_certificate(evidence, tmp_path / "whole", "signing.*")
    count = changes(lambda: certificate.issue(folder, "req-0001"), disk)
    for at in [*faults.of(count), count]:
        folder = without_certificate(evidence, tmp_path / str(at), "signing.*")
        path = folder / "requests/req-0001/certificate.json"
        with disk(at) as calls:
            try:
                certificate.issue(folder, "req-0001")
            except OSError:
                assert len(calls) > at
        if path.exists():
            assert certificate.verify(path, folder / "signing.pub", evidence=folder)
        assert certificate.verify(certificate.issue(folder, "req-0001"), folder / "signing.pub", evidence=folder)
        assert not list(folder.rglob("*.tmp"))
    assert len(calls) <= at, "every write was tried"


@pytest.mark.slow
@FAULTS
def test_a_killed_process_leaves_no_part_of_a_certificate(
    evidence: Path, tmp_path: Path, faults: FaultPositions
) -> None:
    folder = without_certificate(evidence, tmp_path / "whole")
    count = changes(lambda: certificate.issue(folder, "req-0001"))
    assert count > 3
    for at in [*faults.of(count), count]:
        folder = without_certificate(evidence, tmp_path / str(at))
        path = folder / "requests/req-0001/certificate.json"
        died = killed(at, lambda f=folder: certificate.issue(f, "req-0001"))
        assert died or path.exists()
        if path.exists():
            assert certificate.verify(path, folder / "signing.pub", evidence=folder)
        assert certificate.verify(certificate.issue(folder, "req-0001"), folder / "signing.pub", evidence=folder)
    assert not died, "every write was tried"


# --- the command


@pytest.mark.slow
def test_the_command_needs_only_the_file_and_the_key(issued: tuple[Path, Path]) -> None:
    folder = issued[0].parent
    assert sorted(path.name for path in folder.iterdir()) == ["c.json", "k.pub"]
    done = run(folder, "c.json", "--key", "k.pub")
    assert (done.returncode, done.stderr) == (0, "")
    assert "valid: signed by the owner of this key" in done.stdout
    alone = run(folder, "c.json")
    assert alone.returncode == 3
    assert "integrity only" in alone.stdout
    assert "valid:" not in alone.stdout
    assert sorted(path.name for path in folder.iterdir()) == ["c.json", "k.pub"]


@pytest.mark.slow
def test_the_command_refuses_with_exit_code_6_and_one_sentence(issued: tuple[Path, Path]) -> None:
    file, _ = issued
    file.write_bytes(file.read_bytes().replace(b'"suppressed"', b'"exactly"   '))
    for words in (("c.json", "--key", "k.pub"), ("c.json",)):
        done = run(file.parent, *words)
        assert done.returncode == 6
        assert done.stderr.startswith("llm-forget: 'c.json'")
        assert len(done.stderr.splitlines()) == 1
        assert "integrity only" not in done.stdout
    assert run(file.parent, "missing.json", "--key", "k.pub").returncode == 2
