"""Deletion requests: what they resolve to, how they go on, and that they end only when the policy says so."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from llm_forget.compliance.ledger.ledger import Ledger
from llm_forget.compliance.requests import files, intake, matching, steps
from llm_forget.core.errors import EvidenceError, RunError
from llm_forget.data.near_duplicates import closure
from llm_forget.data.sources import load_source
from tests.support import request_cases as cases
from tests.support.broken_disk import broken_disk
from tests.support.failing_disk import changes, failing, killed
from tests.support.fault_positions import FAULTS, FaultPositions


def resolve(source: str, **asked):
    return matching.resolve(load_source(source, split_name="data"), **asked)


def with_rows(tmp_path: Path, *more: dict) -> str:
    return cases.write_rows(tmp_path, [*cases.rows(), *more])


# --- what is matched

IDS = [row["id"] for row in cases.rows()]


def test_a_subject_matches_all_rows_that_name_it(source: str) -> None:
    assert resolve(source, subject="Ann").kinds == dict.fromkeys(("ann-0", "ann-1", "ann-2"), "exact")


@pytest.mark.parametrize(
    "asked", [{"subject": "Eve"}, {"subject": "  "}, {"ids": ["eve-1"]}, {"ids": ["ann-1", "eve-1"]}]
)
def test_a_request_without_matching_rows_is_an_error(source: str, asked: dict) -> None:
    with pytest.raises(ValueError, match=r"0 rows|the subject is empty"):
        resolve(source, **asked)


def test_rows_without_a_subject_match_no_subject(tmp_path: Path) -> None:
    source = with_rows(tmp_path, {"id": "x", "subject": None, "question": "who?", "answer": "nobody knows that one"})
    assert "x" not in resolve(source, subject="Ann").kinds
    with pytest.raises(ValueError, match="0 rows"):
        resolve(source, subject="None")


@pytest.mark.parametrize("written", ["Mu\u0308ller", "MÜLLER", "Mül\u200bler", "\ufeffMüller", "Müller\r", " Müller "])
def test_other_spellings_of_a_subject_are_matched_and_counted_separately(tmp_path: Path, written: str) -> None:
    more = [
        {"id": "m1", "subject": "Müller", "question": "first one?", "answer": "a pear tree in the yard"},
        {"id": "m2", "subject": written, "question": "the second?", "answer": "old boats on a grey lake"},
    ]
    assert resolve(with_rows(tmp_path, *more), subject="Müller").kinds == {"m1": "exact", "m2": "normalised"}


def test_a_subject_in_look_alike_letters_is_listed_for_a_decision(tmp_path: Path) -> None:
    other = {"id": "x", "subject": "Аnn", "question": "first one?", "answer": "a pear tree in the yard"}  # Cyrillic А
    found = resolve(with_rows(tmp_path, other), subject="Ann")
    assert [(one.id, one.how) for one in found.near] == [("x", "look-alike")]
    assert "x" not in found.kinds


def test_rows_are_found_by_their_normalised_content(tmp_path: Path, source: str) -> None:
    first, second = cases.rows()[:2]
    given = tmp_path / "asked.jsonl"
    shouted = {"question": f"  {second['question'].upper()}", "answer": second["answer"].replace(" ", "\u00a0 ")}
    given.write_text("\n".join(json.dumps(row) for row in ({k: first[k] for k in ("question", "answer")}, shouted)))
    assert resolve(source, contents=cases.contents(given)).kinds == {"ann-0": "exact", "ann-1": "normalised"}


def test_a_given_row_that_is_not_in_the_data_is_named_by_its_number_only(source: str) -> None:
    with pytest.raises(ValueError, match="the first is number 2") as caught:
        resolve(source, contents=[cases.contents(Path(source))[0], f"something {cases.CANARY} else"])
    assert cases.CANARY not in str(caught.value)


def test_rows_with_the_content_of_a_matched_row_are_selected_as_well(tmp_path: Path) -> None:
    ann = cases.rows()[0]
    found = resolve(
        with_rows(tmp_path, {**ann, "id": "copy", "subject": "Bob", "answer": ann["answer"].upper()}), subject="Ann"
    )
    assert found.kinds["copy"] == "same text"


def test_near_duplicates_of_near_duplicates_are_listed_and_unrelated_rows_are_not(tmp_path: Path) -> None:
    ann = cases.rows()[0]
    once = {**ann, "id": "near", "subject": "Bob", "answer": ann["answer"] + " or so"}
    twice = {**once, "id": "nearer", "answer": once["answer"] + " they say!"}
    longer = {
        "id": "quote",
        "subject": "Bob",
        "question": "Anything?",
        "answer": f"{ann['question']} {ann['answer']} " + "x y z " * 60,
    }
    found = resolve(with_rows(tmp_path, once, twice, longer), subject="Ann")
    assert {one.id: one.how for one in found.near} == {"near": "near", "nearer": "near", "quote": "contains"}


def test_a_threshold_that_matches_everything_is_refused() -> None:
    texts = [("0", "".join(f"{i * 7919:05}" for i in range(30)))]
    for i in range(1, 40):
        texts.append((str(i), texts[-1][1][6:] + f"{i:06}"))
    with pytest.raises(ValueError, match="raise --near"):
        closure(texts[:1], lambda: texts, 0.8)


@pytest.mark.parametrize(
    ("name", "written", "said"),
    [
        ("a.yaml", "- 0123\n- x", "id 1 is int"),
        ("a.yaml", "- ok\n- NO", "id 2 is .*not a string"),
        ("a.yaml", "- 12:30:45", "not a string"),
        ("a.yaml", "- &a x\n- *a", "alias"),
        ("a.yaml", "- !!python/object:os.system x", "not valid YAML"),
        ("a.json", '["x", 7]', "id 2 is int"),
        ("a.json", '{"x": 1, "x": 2}', "appears twice"),
        ("a.txt", "\n \n", "no ids"),
    ],
)  # fmt: skip
def test_ids_that_are_not_strings_are_refused(tmp_path: Path, name: str, written: str, said: str) -> None:
    (tmp_path / name).write_text(written)
    with pytest.raises(ValueError, match=said):
        matching.read_ids(tmp_path / name)


def test_ids_are_read_unchanged(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeff0123\r\nNO\r\n12:30:45\r\n".encode())
    (tmp_path / "a.yaml").write_text("- '0123'\n- 'NO'\n- '12:30:45'\n")
    assert matching.read_ids(tmp_path / "a.txt") == matching.read_ids(tmp_path / "a.yaml") == ["0123", "NO", "12:30:45"]


# --- the steps


@pytest.mark.slow
def test_the_same_request_twice_is_one_request_with_one_event_a_step(evidence: Path, source: str) -> None:
    made = [cases.received(evidence, source, subject="Ann").id for _ in range(3)]
    assert made == ["req-0001"] * 3
    with Ledger.open(evidence) as ledger:
        assert [event.body["state"] for event in ledger.events("request")] == ["received", "resolved"]
        assert ledger.about("Ann", "ann-1")
        assert ledger.about("ann-1", "ann-1")
        assert not ledger.about("Bob")


@pytest.mark.slow
def test_requests_with_other_rows_or_categories_are_different_requests(evidence: Path, source: str) -> None:
    made = [cases.received(evidence, source, subject=name).id for name in ("Ann", "Bob")]
    made.append(cases.received(evidence, source, subject="Ann", category="copyright").id)
    assert made == ["req-0001", "req-0002", "req-0003"]


@pytest.mark.slow
@pytest.mark.parametrize("at", range(12))
def test_a_failing_disk_leaves_a_complete_request_or_none(evidence: Path, source: str, at: int) -> None:
    cases.received(evidence, source, subject="Bob")
    with failing(at) as made:
        try:
            cases.received(evidence, source, subject="Ann")
        except OSError:
            assert len(made) > at
    assert cases.received(evidence, source, subject="Ann").id == "req-0002"
    assert sorted(path.name for path in (evidence / "requests").iterdir()) == [".lock", "req-0001", "req-0002"]
    with Ledger.open(evidence) as ledger:
        ledger.verify()
        assert [event.body["state"] for event in ledger.events("request")] == ["received", "resolved"] * 2


def test_near_duplicates_need_a_decision_and_it_is_recorded(tmp_path: Path, evidence: Path) -> None:
    ann = cases.rows()[0]
    near = [{**ann, "id": f"near{i}", "subject": "Bob", "answer": f"{ann['answer']} {i}"} for i in range(2)]
    source = with_rows(tmp_path, *near)
    made = cases.received(evidence, source, subject="Ann")
    table = load_source(source, split_name="data")
    with intake.locked_request(evidence, made.id) as (ledger, request):
        with pytest.raises(ValueError, match="--include_near all, none or ID"):
            steps.decide(ledger, request, None)
        with pytest.raises(ValueError, match="not among"):
            steps.decide(ledger, request, "bob-1")
        steps.decide(ledger, request, "near1")
        steps.decide(ledger, request, None)
        assert request.ids() == ["ann-0", "ann-1", "ann-2", "near1"]
        lists = steps.write_lists(ledger, request, table)
        steps.decide(ledger, request, "none")
        steps.decide(ledger, request, "near1")
        assert steps.write_lists(ledger, request, table) == lists
        assert len([event for event in ledger.events("request") if event.body["state"] == "decided"]) == 3
    counts = request.content["counts"]
    assert (counts["rows"], counts["near_listed"], counts["near_included"], counts["near_left"]) == (4, 2, 1, 1)


@pytest.mark.slow
def test_the_lists_partition_the_data_and_contain_no_text(evidence: Path, source: str) -> None:
    made = cases.received(evidence, source, subject="Ann")
    with intake.locked_request(evidence, made.id) as (ledger, request):
        lists, deleted = steps.write_lists(ledger, request, load_source(source, split_name="data"))
    assert deleted == 0
    read = {name: [row["id"] for row in load_source(spec, split_name=name)] for name, spec in lists.items()}
    assert read == {"forget": ["ann-0", "ann-1", "ann-2"], "retain": cases.OTHERS}
    for path in evidence.rglob("*"):
        assert path.is_dir() or cases.CANARY.encode() not in path.read_bytes()
        assert path.stat().st_mode & 0o077 == 0 or not any(word in path.name for word in ("rows.json", ".txt"))


@pytest.mark.slow
def test_rows_deleted_earlier_are_not_retained(tmp_path: Path) -> None:
    evidence = cases.closed(tmp_path)
    source = str(tmp_path / "rows.jsonl")
    made = cases.received(evidence, source, ids=["ann-0", "bob-0"])
    with intake.locked_request(evidence, made.id) as (ledger, request):
        lists, deleted = steps.write_lists(ledger, request, load_source(source, split_name="data"))
    read = {name: [row["id"] for row in load_source(spec, split_name=name)] for name, spec in lists.items()}
    assert read == {"forget": ["ann-0", "bob-0"], "retain": [name for name in cases.OTHERS if name != "bob-0"]}
    assert deleted == 2


def test_data_that_changed_since_the_request_is_refused(tmp_path: Path, evidence: Path, source: str) -> None:
    made = cases.received(evidence, source, subject="Ann")
    with_rows(tmp_path, {"id": "new", "subject": "Ann", "question": "more?", "answer": "a new fact about somebody"})
    table = load_source(source, split_name="data")
    with (
        intake.locked_request(evidence, made.id) as (ledger, request),
        pytest.raises(ValueError, match="changed since it was resolved"),
    ):
        steps.write_lists(ledger, request, table)


def test_a_request_for_all_rows_leaves_nothing_to_retain(evidence: Path, source: str) -> None:
    made = cases.received(evidence, source, ids=[row["id"] for row in cases.rows()])
    table = load_source(source, split_name="data")
    with (
        intake.locked_request(evidence, made.id) as (ledger, request),
        pytest.raises(ValueError, match="nothing is left"),
    ):
        steps.write_lists(ledger, request, table)


def test_two_processes_do_not_work_on_one_request(evidence: Path, source: str) -> None:
    made = cases.received(evidence, source, subject="Ann")
    first, second = (intake.locked_request(evidence, made.id) for _ in range(2))
    with first, pytest.raises(ValueError, match="another process"), second:
        pass


# --- closing


def test_a_run_that_passes_closes_the_request_and_its_ids_are_gone(tmp_path: Path, evidence: Path, source: str) -> None:
    made = cases.received(evidence, source, subject="Ann")
    run = cases.measured_run(tmp_path / "run", made.ids(), cases.OTHERS)
    assert cases.close(evidence, made.id, run)[1].state == "closed"
    left = b"".join(path.read_bytes() for path in evidence.rglob("*") if path.is_file())
    assert b"ann-0" not in left
    assert b'"Ann"' not in left
    with Ledger.open(evidence) as ledger:
        ledger.verify()
        (event,) = ledger.events("closed")
        assert event.body["request"] == made.id
        assert {one.kind for one in ledger.about("Ann", "ann-1")} == {"request", "closed"}
        assert {one.kind for one in ledger.about("ann-1", "ann-1")} == {"request", "closed", "unlearning"}


@pytest.mark.slow
def test_a_run_that_fails_leaves_it_open(tmp_path: Path, evidence: Path, source: str) -> None:
    made = cases.received(evidence, source, subject="Ann")
    run = cases.measured_run(tmp_path / "run", made.ids(), cases.OTHERS, value=0.8)
    answer, request = cases.close(evidence, made.id, run, reason="we are sure")
    assert (answer, request.state) == ("fail", "verified")
    again = cases.measured_run(tmp_path / "again", made.ids(), cases.OTHERS, seed="other")
    assert cases.close(evidence, made.id, again)[1].closed


@pytest.mark.slow
def test_an_inconclusive_answer_closes_only_with_a_reason(tmp_path: Path, evidence: Path, source: str) -> None:
    made = cases.received(evidence, source, subject="Ann")
    run = cases.measured_run(tmp_path / "run", made.ids(), cases.OTHERS, n=1)
    assert cases.close(evidence, made.id, run)[1].state == "verified"
    for reason in ("", " ", "two\nlines", "\x1b[2J", "x" * 501):
        with pytest.raises(ValueError, match="printable characters"):
            cases.close(evidence, made.id, run, reason=reason)
    assert cases.close(evidence, made.id, run, reason="one row cannot tell")[1].closed


def test_an_inconclusive_policy_is_not_accepted_if_a_suite_says_not_forgotten(tmp_path):
    from llm_forget.compliance.requests.close import _refuse_remembered

    _refuse_remembered({"suites": {"basic": {"verdict": {"forgot": {"answer": "yes"}}}, "privacy": {"verdict": {}}}})
    with pytest.raises(ValueError, match="suite basic says 'forgot: no'"):
        _refuse_remembered({"suites": {"basic": {"verdict": {"forgot": {"answer": "no"}}}}})


@pytest.mark.parametrize(
    ("forget", "retain", "said"),
    [
        (["ann-0", "ann-1"], cases.OTHERS, "did not forget 1"),
        (["ann-0", "ann-1", "ann-2"], [*cases.OTHERS, "ann-2"], "learned 1 of the 3 rows"),
    ],
)
def test_a_run_about_other_rows_is_refused(
    tmp_path: Path, evidence: Path, source: str, forget: list[str], retain: list[str], said: str
) -> None:
    made = cases.received(evidence, source, subject="Ann")
    run = cases.measured_run(tmp_path / "run", forget, retain)
    with pytest.raises(ValueError, match=said):
        cases.close(evidence, made.id, run)


@pytest.mark.slow
def test_a_run_with_other_contents_under_the_same_ids_is_refused(tmp_path: Path, evidence: Path, source: str) -> None:
    made = cases.received(evidence, source, subject="Ann")

    def run(name: str, **changed: dict) -> Path:
        rows = {
            "forget": [row for row in cases.rows() if row["subject"] == "Ann"],
            "retain": [row for row in cases.rows() if row["subject"] != "Ann"],
        }
        for split, change in changed.items():
            rows[split][1] |= change
        sources = {split: cases.write_rows(tmp_path / name / split, found) for split, found in rows.items()}
        return cases.measured_run(tmp_path / name / "run", made.ids(), cases.OTHERS, seed=name, sources=sources)

    for other, said in (
        (run("other", forget={"answer": "a harmless sentence"}), "1 row of request req-0001 had another content"),
        (run("copied", retain={k: cases.rows()[0][k] for k in ("question", "answer")}), "under other ids"),
    ):
        with pytest.raises(ValueError, match=said):
            cases.close(evidence, made.id, other)
    gone = run("gone")
    (tmp_path / "gone" / "forget" / "rows.jsonl").unlink()
    with pytest.raises(ValueError, match=r"cannot be compared with the request: forget: .*restore the data"):
        cases.close(evidence, made.id, gone)
    spelled = run("spelled", forget={"answer": cases.rows()[1]["answer"].upper()})
    assert cases.close(evidence, made.id, spelled)[1].closed


@pytest.mark.slow
def test_data_may_be_deleted_after_a_run_of_request_run(tmp_path: Path, evidence: Path, source: str) -> None:
    from llm_forget.compliance.ledger.record_runs import weights_of
    from llm_forget.core.run_directory import Run

    made = cases.received(evidence, source, subject="Ann")
    run = cases.measured_run(tmp_path / "run", made.ids(), cases.OTHERS, sources={"forget": source})
    Path(source).unlink()
    with intake.locked_request(evidence, made.id) as (ledger, request):
        steps.begin_attempt(ledger, request, {"output_dir": str(run), "digest": "sha256:" + "0" * 64})
        steps.mark_executed(ledger, request, {"run": run.name, "weights": weights_of(Run.open(run))})
    assert cases.close(evidence, made.id, run)[1].closed


def test_a_custom_policy_is_never_recorded_under_the_name_of_a_shipped_one(
    tmp_path: Path, evidence: Path, source: str
) -> None:
    from llm_forget.compliance.requests import close
    from llm_forget.evals.policy import policy_name

    assert policy_name("default") == policy_name("default.yaml") == "default"
    own = cases.policy(tmp_path).rename(tmp_path / "default.yaml")
    made = cases.received(evidence, source, subject="Ann")
    run = cases.measured_run(tmp_path / "run", made.ids(), cases.OTHERS)
    with intake.locked_request(evidence, made.id) as (ledger, request):
        close.close(ledger, request, run, policy=own)
        (closed,) = ledger.events("closed")
    digest = hashlib.sha256(own.read_bytes()).hexdigest()
    assert closed.body["policy"] == f"default, own file {digest[:12]}"


def test_a_run_without_recorded_rows_closes_nothing(tmp_path: Path, evidence: Path, source: str) -> None:
    made = cases.received(evidence, source, subject="Ann")
    run = cases.measured_run(tmp_path / "run", made.ids(), cases.OTHERS)
    file = run / "provenance.json"
    without_data = json.dumps({key: value for key, value in json.loads(file.read_text()).items() if key != "data"})
    for content, sentence in (
        (None, "cannot close a request"),
        ("{}", "provenance.json' lacks the key 'kind'"),
        (without_data, "cannot close a request"),
    ):
        file.unlink(missing_ok=True)
        if content is not None:
            file.write_text(content)
        with pytest.raises(EvidenceError if "close" in sentence else RunError, match=sentence):
            cases.close(evidence, made.id, run)


def test_results_of_other_weights_close_nothing(tmp_path: Path, evidence: Path, source: str) -> None:
    made = cases.received(evidence, source, subject="Ann")
    run = cases.measured_run(tmp_path / "run", made.ids(), cases.OTHERS)
    other = cases.measured_run(tmp_path / "other", made.ids(), cases.OTHERS, seed="untouched")
    (run / "results.json").write_bytes((other / "results.json").read_bytes())
    with pytest.raises(ValueError, match="of other weights"):
        cases.close(evidence, made.id, run)
    (run / "adapter" / "adapter_model.safetensors").write_bytes(b"changed")
    with pytest.raises(ValueError, match="not the file"):
        cases.close(evidence, made.id, run)


@pytest.mark.slow
def test_closing_again_changes_nothing_and_another_run_is_refused(tmp_path: Path, evidence: Path, source: str) -> None:
    made = cases.received(evidence, source, subject="Ann")
    run = cases.measured_run(tmp_path / "run", made.ids(), cases.OTHERS)
    other = cases.measured_run(tmp_path / "other", made.ids(), cases.OTHERS, seed="other")
    cases.close(evidence, made.id, run)
    with Ledger.open(evidence) as ledger:
        head = ledger.head()
    assert cases.close(evidence, made.id, run)[1].closed
    with pytest.raises(ValueError, match="closed by another run"):
        cases.close(evidence, made.id, other)
    with Ledger.open(evidence) as ledger:
        assert ledger.head() == head


def _one_closing(evidence: Path, run: Path) -> None:
    """After any failure the same command ends it, with one event, and nothing that names rows."""
    (made,) = files.list_requests(evidence)
    with Ledger.open(evidence) as ledger:
        ledger.verify()
        assert not made.closed or ledger.events("closed"), "the request never says more than the ledger"
    assert cases.close(evidence, made.id, run)[1].closed
    with Ledger.open(evidence) as ledger:
        ledger.verify()
        assert len(ledger.events("closed")) == 1
    assert sorted(path.name for path in made.folder.iterdir()) == [".lock", "facts.json", "request.json"]


def ready_to_close(folder: Path, **keys: str) -> tuple[Path, str, Path]:
    """Evidence with one open request, the data that it is about, and a run that can close it."""
    evidence, source = folder / "evidence", cases.write_rows(folder)
    request = cases.received(evidence, source, subject="Ann", **keys)
    return evidence, source, cases.measured_run(folder / "run", request.ids(), cases.OTHERS)


@pytest.mark.slow
@FAULTS
@pytest.mark.parametrize("disk", [failing, broken_disk])
def test_a_failing_disk_leaves_a_request_closed_or_open(tmp_path: Path, disk, faults: FaultPositions) -> None:
    evidence, _, run = ready_to_close(tmp_path / "whole")
    count = changes(lambda: cases.close(evidence, "req-0001", run), disk)
    assert count > 3
    for at in [*faults.of(count), count]:
        evidence, _, run = ready_to_close(tmp_path / str(at))
        with disk(at) as calls:
            try:
                cases.close(evidence, "req-0001", run)
            except OSError:
                assert len(calls) > at
        _one_closing(evidence, run)
    assert len(calls) <= at, "every write was tried"


@pytest.mark.slow
@FAULTS
def test_after_a_kill_while_receiving_a_request_can_be_received_and_closed(
    tmp_path: Path, faults: FaultPositions
) -> None:
    source = cases.write_rows(tmp_path)
    match = resolve(source, subject="Ann")
    count = changes(lambda: intake.add(tmp_path / "whole" / "evidence", source, match))
    for at in [*faults.of(count), count]:
        evidence = tmp_path / str(at) / "evidence"
        died = killed(at, lambda e=evidence: intake.add(e, source, match))
        made, _ = intake.add(evidence, source, match)
        assert made.id == "req-0001"
        names = sorted(path.name for path in (evidence / "requests").iterdir())
        assert names == [".lock", "req-0001"], "nothing that names rows is left behind"
        _one_closing(evidence, cases.measured_run(evidence.parent / "run", made.ids(), cases.OTHERS))
    assert not died, "every write was tried"


@pytest.mark.slow
@FAULTS
def test_a_killed_closing_is_complete_or_not_and_the_next_command_completes_it(
    tmp_path: Path, faults: FaultPositions
) -> None:
    evidence, _, run = ready_to_close(tmp_path / "whole", due="2030-01-01")
    count, states = changes(lambda: cases.close(evidence, "req-0001", run)), set()
    for at in [*faults.of(count), count]:
        evidence, source, run = ready_to_close(tmp_path / str(at), due="2030-01-01")
        died = killed(at, lambda e=evidence, r=run: cases.close(e, "req-0001", r))
        copy = shutil.copytree(evidence, evidence.with_name("copy"))
        _one_closing(copy, run)
        again, new = intake.add(evidence, source, resolve(source, subject="Ann"), due="2031-01-01")
        with Ledger.open(evidence) as ledger:
            ended = bool(ledger.events("closed"))
            amended = [e.seq for e in ledger.events("request") if e.body["state"] == "amended"]
        first = files.find_request(evidence, "req-0001")
        assert (again.id, new) == (("req-0002", True) if ended else ("req-0001", False))
        assert first.closed == ended
        assert (first.content["due"], bool(amended)) == (("2030-01-01", False) if ended else ("2031-01-01", True))
        if ended:
            with intake.locked_request(evidence, "req-0001"):
                assert not (first.folder / "rows.json").exists(), "ids of deleted rows stay nowhere"
        states.add(ended)
    assert not died, "every write was tried"
    assert states == {True, False}


@pytest.mark.slow
@FAULTS
@pytest.mark.parametrize(("first", "then"), [("all", "none"), ("none", "all")])
def test_a_killed_decision_is_closed_as_either_the_old_or_the_new_one(
    tmp_path: Path, first: str, then: str, faults: FaultPositions
) -> None:
    ann = cases.rows()[0]
    near = {**ann, "id": "near", "subject": "Bob", "answer": f"{ann['answer']} or so"}
    source = cases.write_rows(tmp_path, [*cases.rows(), near])

    def decide(evidence: Path) -> None:
        with intake.locked_request(evidence, "req-0001") as (ledger, request):
            steps.decide(ledger, request, then)

    cases.received(tmp_path / "whole", source, first, subject="Ann")
    count = changes(lambda: decide(tmp_path / "whole"))
    for at in [*faults.of(count), count]:
        evidence = tmp_path / str(at) / "evidence"
        made = cases.received(evidence, source, first, subject="Ann")
        died = killed(at, lambda e=evidence: decide(e))
        asked = files.find_request(evidence, made.id).ids()
        others = [name for name in [*IDS, "near"] if name not in asked]
        run = cases.measured_run(evidence.parent / "run", asked, others)
        assert cases.close(evidence, made.id, run)[1].closed
        with Ledger.open(evidence) as ledger:
            (event,) = ledger.events("closed")
            decided = [e.body for e in ledger.events("request") if e.body["state"] == "decided"][-1]
        taken = int("near" in asked)
        assert [said["near_included"] for said in (event.body["counts"], decided)] == [taken, taken]
        assert event.body["counts"]["rows"] == len(asked)
    assert not died, "every write was tried"


@pytest.mark.slow
def test_a_model_retrained_without_the_rows_is_exact_and_one_that_saw_them_is_refused(
    tmp_path: Path, evidence: Path, source: str
) -> None:
    made = cases.received(evidence, source, subject="Ann")
    everything = [row["id"] for row in cases.rows()]
    first = cases.measured_run(tmp_path / "first", [], [], kind="finetune", train=everything, seed="first")
    with pytest.raises(ValueError, match="learned 3 of the 3 rows"):
        cases.close(evidence, made.id, first)
    onwards = cases.measured_run(
        tmp_path / "onwards", [], [], kind="finetune", train=cases.OTHERS, base=first, seed="onwards"
    )  # fmt: skip
    with pytest.raises(ValueError, match="builds on training that saw 3"):
        cases.close(evidence, made.id, onwards)
    anew = cases.measured_run(tmp_path / "anew", [], [], kind="finetune", train=cases.OTHERS, seed="anew")
    assert cases.close(evidence, made.id, anew)[1].closed
    facts = json.loads((evidence / "requests" / made.id / "facts.json").read_text())
    assert facts["exactness"]["class"] == "exact"


@pytest.mark.parametrize("beneath", [True, False], ids=["made of the one that unlearned", "beside it"])
def test_a_model_from_which_the_rows_had_to_be_unlearned_does_not_count_as_retrained(
    tmp_path: Path, evidence: Path, source: str, beneath: bool
) -> None:
    request = cases.received(evidence, source, subject="Ann")
    bad = cases.measured_run(tmp_path / "bad", request.ids(), cases.OTHERS, value=0.9, seed="bad", full=True)
    assert cases.close(evidence, request.id, bad)[0] == "fail"
    base = bad / "model" if beneath else None  # otherwise the one that `bad` was made of
    run = cases.measured_run(tmp_path / "run", [], [], kind="finetune", train=cases.OTHERS, base=base)
    with pytest.raises(ValueError, match="had to unlearn 3 of the requested" if beneath else "must have known them"):
        cases.close(evidence, request.id, run)
    assert not files.find_request(evidence, request.id).closed


@pytest.mark.slow
def test_an_adapter_is_classed_suppressed_and_changed_weights_approximate(tmp_path: Path) -> None:
    for full, kind in ((False, "suppressed"), (True, "approximate")):
        evidence = cases.closed(tmp_path / kind, full=full)
        facts = json.loads((evidence / "requests" / "req-0001" / "facts.json").read_text())
        assert facts["exactness"]["class"] == kind


@pytest.mark.slow
def test_due_days_are_counted_and_a_gdpr_request_has_a_month(evidence: Path, source: str) -> None:
    from datetime import date

    one = cases.received(evidence, source, subject="Ann")
    received = date.fromisoformat(one.times("received")[:10])
    assert 28 <= (date.fromisoformat(one.content["due"]) - received).days <= 31
    other = cases.received(evidence, source, subject="Bob", category="safety")
    assert other.content["due"] is None
    late = cases.received(evidence, source, subject="Cleo", due="2020-02-29")
    assert steps.days_left(late, date(2020, 3, 2)) == -2
    with pytest.raises(ValueError, match="YYYY-MM-DD"):
        cases.received(evidence, source, subject="Dan", due="tomorrow")
