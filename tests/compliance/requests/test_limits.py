"""What a request does not do unasked: remove protected rows, take too much, run with nobody behind it; amendments."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from llm_forget.cli.main import app
from llm_forget.compliance.certificates import certificate
from llm_forget.compliance.ledger.ledger import Ledger
from llm_forget.compliance.requests import files, intake, limits, steps
from llm_forget.compliance.requests.files import locked
from tests.support import request_cases as cases
from tests.support.failing_disk import changes, killed
from tests.support.fault_positions import FAULTS, FaultPositions


def limited(evidence: Path, **content: Any) -> None:
    evidence.mkdir(mode=0o700, exist_ok=True)
    (evidence / limits.FILE).write_text(yaml.safe_dump(content))


def states(evidence: Path) -> list[str]:
    with Ledger.open(evidence) as ledger:
        return [event.body["state"] for event in ledger.events("request")]


def call(evidence: Path, *words: str) -> Any:
    return CliRunner().invoke(app, [*words, "--evidence", str(evidence)])


def protect_ann(tmp_path: Path, evidence: Path) -> None:
    """Her second row, under another id and spelled otherwise."""
    row = cases.rows()[1]
    kept = {"id": "safe", "question": row["question"].upper(), "answer": f"  {row['answer']}\u200b"}
    (tmp_path / "safety.jsonl").write_text(json.dumps(kept))
    limited(evidence, protected=[str(tmp_path / "safety.jsonl")])


def test_without_limits_nothing_is_limited(tmp_path: Path, evidence: Path, source: str) -> None:
    made = cases.received(evidence, source, ids=[row["id"] for row in cases.rows()[:11]])
    limits.enforce(limits.read(evidence), made)
    shown = call(evidence, "request", "show", made.id).output
    assert "11 of 12 rows to forget, 91.7%" in shown
    assert "more than half of the data" in shown


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"max_shares": 1}, "did you mean 'max_share'"),
        ({"max_share": 2}, "at most 1"),
        ({"max_rows": 0}, "1 or more"),
        ({"max_rows": True}, "1 or more"),
        ({"authorised_by": [7]}, "list of roles"),
        (["x"], "must be a mapping"),
    ],
)
def test_invalid_limits_are_refused(evidence: Path, source: str, content: Any, said: str) -> None:
    evidence.mkdir()
    (evidence / limits.FILE).write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError, match=said):
        cases.received(evidence, source, subject="Ann")


@pytest.mark.slow
@pytest.mark.parametrize("content", [{"max_rows": 5}, {"max_share": 0.4}])
def test_open_requests_stay_within_the_quota_and_force_is_recorded(evidence: Path, source: str, content: dict) -> None:
    limited(evidence, **content)
    cases.received(evidence, source, subject="Ann")
    asked = ("request", "add", "--subject", "Bob", "--data", source)
    refused = call(evidence, *asked)
    assert (refused.exit_code, "give --force" in refused.output) == (2, True), refused.output
    assert len(files.list_requests(evidence)) == 1
    assert call(evidence, *asked, "--force").exit_code == 0
    with Ledger.open(evidence) as ledger:
        received = [event.body for event in ledger.events("request") if event.body["state"] == "received"]
    assert [body.get("forced") for body in received] == [None, True]


def test_the_same_row_in_two_requests_counts_once_towards_the_share(evidence: Path, source: str) -> None:
    limited(evidence, max_share=0.25)
    cases.received(evidence, source, subject="Ann")
    assert cases.received(evidence, source, ids=["ann-0", "ann-1"]).id == "req-0002"


@pytest.mark.slow
@pytest.mark.parametrize("content", [{"max_rows": 4}, {"max_share": 0.3}])
def test_near_duplicates_count_towards_a_quota(tmp_path: Path, evidence: Path, content: dict) -> None:
    limited(evidence, **content)
    ann = cases.rows()[0]
    near = [{**ann, "id": f"near{i}", "subject": "Bob", "answer": f"{ann['answer']} or so {i}"} for i in range(5)]
    source = cases.write_rows(tmp_path, [*cases.rows(), *near])
    asked = ("request", "add", "--subject", "Ann", "--data", source)
    refused = call(evidence, *asked, "--include_near", "all")
    assert (refused.exit_code, "near-duplicates, would remove" in refused.output) == (2, True), refused.output
    assert files.list_requests(evidence) == []
    assert call(evidence, *asked, "--force").exit_code == 0


@pytest.mark.slow
def test_protected_rows_are_only_removed_with_a_reason_whatever_their_id(
    tmp_path: Path, evidence: Path, source: str
) -> None:
    protect_ann(tmp_path, evidence)
    made = cases.received(evidence, source, subject="Ann")
    run = cases.measured_run(tmp_path / "run", made.ids(), cases.OTHERS)
    words = ("--run", str(run), "--policy", str(cases.policy(tmp_path)))
    shown = call(evidence, "request", "show", made.id).output
    assert "ann-1  not without --allow_protected" in shown
    assert cases.CANARY not in shown
    for refused in (
        call(evidence, "request", "run", made.id, "demo/npo"),
        call(evidence, "request", "close", made.id, *words),
    ):
        assert (refused.exit_code, "would remove 1 row that" in refused.output) == (2, True), refused.output
    with intake.locked_request(evidence, made.id) as (ledger, request):
        for reason in ("", "two\nlines", "x" * 501):
            with pytest.raises(ValueError, match="printable characters"):
                steps.allow_protected(ledger, request, reason)
        for _ in range(2):
            steps.allow_protected(ledger, request, "asked by the safety team")
    cases.received(evidence, source, subject="Ann", due="2031-01-01", authorised_by="legal")
    done = call(evidence, "request", "close", made.id, *words)
    assert done.exit_code == 0
    assert "audit unlink Ann" in done.output
    body = certificate.verify(certificate.issue(evidence, made.id), evidence / "signing.pub", evidence=evidence)
    said = body["request"]
    assert (said["due"], said["authorised_by"]) == ("2031-01-01", "legal")
    assert said["due_at_first"] == made.content["due"]
    assert said["protected_rows"] == {"rows": 1, "reason": "asked by the safety team"}
    page = (evidence / "requests" / made.id / "certificate.html").read_text()
    assert all(words in page for words in ("originally", "legal", "asked by the safety team"))
    with Ledger.open(evidence) as ledger:
        amended = next(event.body for event in ledger.events("request") if event.body["state"] == "amended")
    assert (amended["allow_protected"], amended["protected"]) == ("asked by the safety team", 1)
    assert not any(b"ann-1" in path.read_bytes() for path in evidence.rglob("*") if path.is_file())


@pytest.mark.slow
def test_included_near_duplicates_that_are_protected_need_permission(tmp_path: Path, evidence: Path) -> None:
    ann = cases.rows()[0]
    near = {**ann, "id": "near", "subject": "Bob", "answer": f"{ann['answer']} or so"}
    source = cases.write_rows(tmp_path, [*cases.rows(), near])
    limited(evidence, protected=[{"path": source, "ids": ["near"]}])
    made = cases.received(evidence, source, subject="Ann")
    with intake.locked_request(evidence, made.id) as (ledger, request):
        steps.decide(ledger, request, "none")
        limits.enforce(limits.read(evidence), request)
        steps.decide(ledger, request, "all")
        with pytest.raises(ValueError, match="protects"):
            limits.enforce(limits.read(evidence), request)


def test_unreadable_protected_rows_prevent_removal(tmp_path: Path, evidence: Path, source: str) -> None:
    made = cases.received(evidence, source, subject="Ann")
    limited(evidence, protected="gone.jsonl")
    with pytest.raises(ValueError, match="does not exist"):
        limits.enforce(limits.read(evidence), made)


def test_allow_protected_without_protected_rows_is_refused(evidence: Path, source: str) -> None:
    made = cases.received(evidence, source, subject="Ann")
    with intake.locked_request(evidence, made.id) as (ledger, request), pytest.raises(ValueError, match="leave it out"):
        steps.allow_protected(ledger, request, "why not")


@pytest.mark.slow
def test_a_request_runs_and_closes_only_if_a_listed_role_authorised_it(
    tmp_path: Path, evidence: Path, source: str
) -> None:
    limited(evidence, authorised_by=["privacy office", "legal"])
    made = cases.received(evidence, source, subject="Ann")
    for words in (("run", made.id, "demo/npo"), ("close", made.id, "--run", "x")):
        refused = call(evidence, "request", *words)
        assert (refused.exit_code, "privacy office, legal" in refused.output) == (2, True), refused.output
    with pytest.raises(ValueError, match="did you mean 'legal'"):
        cases.received(evidence, source, subject="Ann", authorised_by="legals")
    again = cases.received(evidence, source, subject="Ann", authorised_by="legal")
    assert again.id == made.id
    limits.enforce(limits.read(evidence), again)
    assert states(evidence) == ["received", "resolved", "amended"]
    assert "authorised by legal" in call(evidence, "request", "show", made.id).output


@pytest.mark.slow
def test_another_due_date_amends_the_request_and_is_recorded(evidence: Path, source: str) -> None:
    first = cases.received(evidence, source, subject="Ann", due="2027-01-01")
    for due, events in (("2027-02-01", 3), ("2027-02-01", 3), (None, 3), ("2027-01-01", 4)):
        again = cases.received(evidence, source, subject="Ann", due=due)
        assert (again.id, again.state) == (first.id, "resolved")
        assert len(states(evidence)) == events
    assert files.list_requests(evidence)[0].content["due"] == "2027-01-01"
    assert (
        "exists already, due 2027-03-01"
        in call(evidence, "request", "add", "--subject", "Ann", "--data", source, "--due", "2027-03-01").output
    )


@pytest.mark.slow
@FAULTS
def test_an_interrupted_amendment_is_one_event(tmp_path: Path, faults: FaultPositions) -> None:
    source = cases.write_rows(tmp_path)

    def amended(evidence: Path) -> steps.Request:
        return cases.received(evidence, source, subject="Ann", due="2027-02-01")

    cases.received(tmp_path / "whole", source, subject="Ann")
    count = changes(lambda: amended(tmp_path / "whole"))
    assert count > 0
    for at in [*faults.of(count), count]:
        evidence = tmp_path / str(at)
        cases.received(evidence, source, subject="Ann")
        died = killed(at, lambda e=evidence: amended(e))
        assert amended(evidence).content["due"] == "2027-02-01"
        assert states(evidence) == ["received", "resolved", "amended"]
    assert not died, "every write was tried"


def test_a_locked_request_is_not_amended(evidence: Path, source: str) -> None:
    made = cases.received(evidence, source, subject="Ann")
    with locked(made.folder / ".lock"), pytest.raises(ValueError, match="another process works on request req-0001"):
        cases.received(evidence, source, subject="Ann", due="2027-02-01")


def test_a_deleted_run_is_trained_again_and_a_closed_request_runs_no_more(tmp_path: Path, evidence: Path) -> None:
    source = cases.write_rows(tmp_path)
    made = cases.received(evidence, source, subject="Ann")
    attempt = {"output_dir": str(tmp_path / "run"), "digest": "sha256:" + "0" * 64}
    with intake.locked_request(evidence, made.id) as (ledger, request):
        assert steps.begin_attempt(ledger, request, attempt)
        assert steps.begin_attempt(ledger, request, attempt), "it was begun, and not executed"
        steps.mark_executed(ledger, request, {"run": "run"})
        assert steps.begin_attempt(ledger, request, attempt), "its run is not there"
        steps.mark_executed(ledger, request, {"run": "run"})
        run = cases.measured_run(tmp_path / "run", made.ids(), cases.OTHERS)
        assert not steps.begin_attempt(ledger, request, attempt)
        assert len(request.content["attempts"]) == 1
    assert states(evidence)[2:] == ["running", "executed", "running", "executed"]
    cases.close(evidence, made.id, run)
    with (
        intake.locked_request(evidence, made.id) as (ledger, request),
        pytest.raises(ValueError, match="closed already"),
    ):
        steps.begin_attempt(ledger, request, {**attempt, "digest": "sha256:" + "1" * 64})
