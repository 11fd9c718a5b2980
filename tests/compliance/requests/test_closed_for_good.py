"""Ways round a deletion that were found by trying them: each is refused."""

import copy
import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from llm_forget.cli.main import app
from llm_forget.compliance.certificates import certificate
from llm_forget.compliance.ledger.ledger import Ledger
from llm_forget.compliance.ledger.signing import sign
from llm_forget.compliance.requests import intake
from llm_forget.compliance.requests.execute import execute
from llm_forget.compliance.versions.versions import add_version, rollback, use
from llm_forget.core.errors import EvidenceBroken
from llm_forget.core.strict_json import canonical, strict_loads
from tests.support import request_cases as cases

IDS = [row["id"] for row in cases.rows()]


@pytest.mark.slow
def test_no_rollback_to_an_attempt_that_failed_its_policy(tmp_path: Path, evidence: Path) -> None:
    target = cases.measured_run(tmp_path / "target", [], [], kind="finetune", train=IDS, seed="t")
    request = cases.received(evidence, cases.write_rows(tmp_path), subject="Ann")
    rest = [name for name in IDS if name not in request.ids()]
    bad = cases.measured_run(tmp_path / "bad", request.ids(), rest, base=target, seed="b", value=0.9)
    good = cases.measured_run(tmp_path / "good", request.ids(), rest, base=target, seed="g")
    for run in (target, bad):
        use(evidence, add_version(evidence, run))
    assert cases.close(evidence, request.id, bad)[0] == "fail"
    use(evidence, add_version(evidence, good))
    assert cases.close(evidence, request.id, good)[0] == "pass"
    with pytest.raises(ValueError, match="would bring it back"):
        rollback(evidence)


def test_undecided_near_duplicates_prevent_closing(tmp_path: Path, evidence: Path) -> None:
    ann = cases.rows()[0]
    near = {**ann, "id": "near", "subject": "Bob", "answer": f"{ann['answer']} or so"}
    request = cases.received(evidence, cases.write_rows(tmp_path, [*cases.rows(), near]), subject="Ann")
    rest = [name for name in [*IDS, "near"] if name not in request.ids()]
    run = cases.measured_run(tmp_path / "run", request.ids(), rest)
    with pytest.raises(ValueError, match="near-duplicates without a decision"):
        cases.close(evidence, request.id, run)


@pytest.mark.slow
def test_results_on_rows_given_as_an_option_close_nothing_or_are_a_caveat(tmp_path: Path, evidence: Path) -> None:
    made = cases.received(evidence, cases.write_rows(tmp_path), subject="Ann")
    run = cases.measured_run(tmp_path / "run", made.ids(), cases.OTHERS)
    anew = cases.measured_run(tmp_path / "anew", [], [], kind="finetune", train=cases.OTHERS, seed="anew")
    for path in (run / "results.json", anew / "results.json"):  # as `evaluate --forget other.jsonl` leaves it
        path.write_text(path.read_text().replace('"overrides": []', '"overrides": ["forget"]'))
    with pytest.raises(ValueError, match="measured with --forget on other rows"):
        cases.close(evidence, made.id, run)
    assert cases.close(evidence, made.id, anew)[1].closed
    body = json.loads(certificate.issue(evidence, made.id).read_text())["body"]
    assert "given as an option" in body["does_not_show"]["rows"]


@pytest.mark.slow
def test_a_signed_certificate_cannot_claim_more_than_was_closed(tmp_path: Path) -> None:
    evidence = cases.closed(tmp_path, full=True)
    path = certificate.issue(evidence, "req-0001")
    true = strict_loads(path.read_bytes())["body"]

    def refused(**ledger: Path) -> str:
        path.write_bytes(canonical({"body": body, "signature": sign(evidence, certificate.PURPOSE + canonical(body))}))
        with pytest.raises(EvidenceBroken) as raised:
            certificate.verify(path, evidence / "signing.pub", **ledger)
        return str(raised.value)

    body = copy.deepcopy(true)
    body["exactness"] = {"class": "exact", "why": "retrained"}
    assert "class of exactness" in refused()
    body = copy.deepcopy(true)
    body["environment"] = {}
    assert "facts" in refused(evidence=evidence)


@pytest.mark.slow
def test_a_request_number_is_never_reused(tmp_path: Path) -> None:
    evidence = cases.closed(tmp_path)
    shutil.rmtree(evidence / "requests" / "req-0001")
    again = cases.received(evidence, str(tmp_path / "rows.jsonl"), subject="Bob", category="copyright")
    assert again.id == "req-0002"


def test_unlinking_a_subject_unlinks_its_rows(tmp_path: Path) -> None:
    evidence = cases.closed(tmp_path)
    with Ledger.open(evidence) as ledger:
        assert ledger.about("ann-0", "ann-0")
        assert ledger.destroy_keys(["Ann"]) > 1
        assert ledger.about("ann-0", "ann-0") == ledger.about("Ann") == []
        ledger.verify()


def test_a_model_retrained_from_weights_that_saw_the_rows_is_refused(tmp_path: Path, evidence: Path) -> None:
    request = cases.received(evidence, cases.write_rows(tmp_path), subject="Ann")
    rest = [name for name in IDS if name not in request.ids()]
    target = cases.measured_run(tmp_path / "target", [], [], kind="finetune", train=IDS, seed="t")
    model = target / "model"
    retrained = cases.measured_run(tmp_path / "re", [], rest, kind="finetune", base=model, seed="r")
    with pytest.raises(ValueError, match="saw 3 of the requested rows"):
        cases.close(evidence, request.id, retrained)


def test_an_open_request_prevents_unlinking(tmp_path: Path, evidence: Path) -> None:
    cases.received(evidence, cases.write_rows(tmp_path), subject="Ann")
    for name in ("Ann", "ann-1"):
        done = CliRunner().invoke(app, ["audit", "unlink", name, "--evidence", str(evidence)])
        assert (done.exit_code, "req-0001 is open" in done.output) == (2, True)
    with Ledger.open(evidence) as ledger:
        assert ledger.about("ann-1")


@pytest.mark.slow
def test_the_model_of_a_request_must_not_contain_rows_deleted_earlier(tmp_path: Path, evidence: Path) -> None:
    target = cases.measured_run(tmp_path / "target", [], [], kind="finetune", train=IDS, seed="t")
    source = cases.write_rows(tmp_path)
    for name in ("Ann", "Bob"):
        cases.received(evidence, source, subject=name)
    ann, rest = IDS[:3], IDS[6:]
    first = cases.measured_run(tmp_path / "first", ann, IDS[3:], base=target, seed="1")
    assert cases.close(evidence, "req-0001", first)[1].closed
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"{{model_name_or_path: {target}, method: npo, output_dir: {tmp_path / 'next'}}}")
    with intake.locked_request(evidence, "req-0002") as (ledger, request):
        told: list[str] = []
        with pytest.raises(ValueError, match="holds rows that req-0001 deleted"):
            execute(ledger, request, str(recipe), [], say=told.append)
        assert told == ["not retained: 3 rows that earlier requests deleted"]
    beside = cases.measured_run(tmp_path / "beside", IDS[3:6], rest, base=target, seed="2")
    words = ["request", "close", "req-0002", "--run", str(beside), "--policy", str(cases.policy(tmp_path))]
    done = CliRunner().invoke(app, [*words, "--evidence", str(evidence)])
    assert done.exit_code == 0, done.output
    assert "'beside' holds rows that req-0001 deleted; do not use it" in done.output


@pytest.mark.parametrize(
    "words", [["evaluate"], ["attack", "--kind", "sample"], ["verify"], ["report"]], ids=lambda words: words[0]
)
def test_nothing_is_written_into_a_version(tmp_path: Path, evidence: Path, words: list[str]) -> None:
    run = cases.measured_run(tmp_path / "run", IDS[:3], IDS[3:])
    folder = evidence / "versions" / add_version(evidence, run)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    done = CliRunner().invoke(app, [words[0], str(folder), *words[1:]])
    assert (done.exit_code, "is a version, kept as evidence" in done.output) == (2, True), done.output
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
