"""No version that holds deleted data comes into use again."""

import random
import time

import pytest
from typer.testing import CliRunner

from llm_forget.cli.main import app
from llm_forget.compliance.ledger.ledger import Ledger
from llm_forget.compliance.versions.deletion_check import Deletions
from llm_forget.compliance.versions.versions import add_version, current, list_versions, path_of, rollback, use
from llm_forget.core.files import write_json
from tests.support import request_cases as cases
from tests.support.version_cases import close, events, told, unclean


@pytest.mark.slow
def test_a_rollback_behind_a_deletion_is_refused_and_names_the_newest_clean_version(evidence, chain):
    for run in ("target", "without-a"):
        use(evidence, chain[run])
    close(evidence, "a")
    with pytest.raises(ValueError, match=f"request R-1.*newest clean version is {chain['without-b']}"):
        rollback(evidence)
    with pytest.raises(ValueError, match="would bring it back"):
        use(evidence, chain["target"])
    assert current(evidence) == chain["without-a"]
    assert unclean(evidence) == {"target"}
    use(evidence, chain["without-b"])
    assert rollback(evidence) == chain["without-a"]  # forgot a, whatever its base saw


@pytest.mark.slow
def test_a_version_that_retained_rows_deleted_later_is_refused(evidence, chain):
    use(evidence, chain["without-a"])
    use(evidence, chain["without-b"])
    close(evidence, "b", request="R-2")
    assert unclean(evidence) == {"target", "without-a"}
    with pytest.raises(ValueError, match="request R-2"):
        rollback(evidence)


def test_a_deletion_is_contained_as_long_as_one_of_its_records_is(evidence, chain):
    close(evidence, "a", "b")
    assert unclean(evidence) == {"target", "without-a"}


@pytest.mark.slow
def test_training_on_deleted_rows_again_brings_them_back(evidence, chain, make):
    again = make("again", path_of(evidence, chain["without-b"]), train=["b"])
    add_version(evidence, again)
    add_version(evidence, make("on-top", again.path, forget=["c"], retain=["d"]))
    close(evidence, "b")
    assert unclean(evidence) == {"target", "without-a", "again", "on-top"}


def test_an_oracle_on_the_same_base_does_not_contain_what_only_the_target_learned(evidence, chain, base, make):
    add_version(evidence, make("oracle", base, train=["b", "c"]))
    close(evidence, "a")
    assert unclean(evidence) == {"target"}


@pytest.mark.slow
def test_a_base_of_unknown_training_contains_what_was_unlearned_from_it(evidence, base, make):
    add_version(evidence, make("tuned", base, train=["x"]))
    add_version(evidence, make("rehearsed", base, forget=["y"], retain=["z"]))
    without = make("without", base, forget=["p"], retain=["q"])
    add_version(evidence, without)
    add_version(evidence, make("on-top", without.path, train=["x"]))
    close(evidence, "p")
    assert unclean(evidence) == {"tuned", "rehearsed"}


@pytest.mark.slow
def test_a_base_does_not_contain_what_fine_tuning_taught(evidence, chain, make):
    taught = make("taught", path_of(evidence, chain["without-b"]), train=["new"])
    add_version(evidence, make("without-new", taught.path, forget=["new"], retain=["c"]))
    close(evidence, "new")
    assert unclean(evidence) == {"taught"}


@pytest.mark.slow
def test_a_base_contains_rows_that_were_only_retained_later(evidence, base, make):
    first = make("first", base, forget=["a"], retain=["b"])
    second = make("second", first.path, forget=["b"], retain=["c"])
    add_version(evidence, second)
    add_version(evidence, make("sibling", base, forget=["a"], retain=["c"]))
    close(evidence, "b")
    assert unclean(evidence) == {"first", "sibling"}  # nobody noted that the base knew b, but it did


@pytest.mark.slow
def test_a_deletion_still_counts_after_its_key_was_destroyed(evidence, chain):
    close(evidence, "a")
    with Ledger.open(evidence) as ledger:
        ledger.destroy_keys(["a"])
        assert not ledger.about("a")
    assert unclean(evidence) == {"target"}


@pytest.mark.slow
def test_a_run_whose_keys_were_destroyed_cannot_be_compared_with_later_requests(evidence, base, make, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "config.json").write_text("{}")
    (elsewhere / "model.safetensors").write_bytes(b"another")
    target = make("target", base, train=["a", "b"])
    other = add_version(evidence, make("other", elsewhere, train=["a", "x"]))
    add_version(evidence, target)
    with Ledger.open(evidence) as ledger:
        assert ledger.destroy_keys(["a"])  # before anybody asked for it
    forgot = add_version(evidence, make("forgot", target.path, forget=["a"], retain=["b"]))
    close(evidence, "a")
    assert unclean(evidence) == {"target"}  # nothing links what 'other' learned to what was deleted
    with pytest.raises(ValueError, match=r"keys of rows of run 'other' were destroyed.*may be the same.*--unjudged"):
        use(evidence, other)
    use(evidence, forgot)


@pytest.mark.slow
def test_destroying_keys_of_deleted_rows_does_not_affect_other_runs(evidence, chain, base, make):
    close(evidence, "a")
    with Ledger.open(evidence) as ledger:
        assert ledger.destroy_keys(["a"])
    new = make("new", base, train=["p", "q"])
    add_version(evidence, new)
    add_version(evidence, make("new-forgot", new.path, forget=["p"], retain=["q"]))
    close(evidence, "p", request="R-2")
    assert unclean(evidence) == {"target", "new"}
    use(evidence, chain["without-b"])


@pytest.mark.slow
def test_an_old_run_recorded_after_keys_were_destroyed_cannot_be_judged(evidence, chain, base, make):
    close(evidence, "a")
    late = make("late", base, train=["a", "x"])
    with Ledger.open(evidence) as ledger:
        assert ledger.destroy_keys(["a"])
    version = add_version(evidence, late)
    on_top = add_version(evidence, make("on-top", late.path, forget=["x"], retain=["y"]))
    assert unclean(evidence) == {"target"}
    for one in (version, on_top):
        with pytest.raises(
            ValueError, match=r"run 'late' was added to the ledger after 1 key was destroyed.*newest clean.*--unjudged"
        ):
            use(evidence, one)
        assert "cannot be judged" in told(evidence, "show", one)[1]
        asked = CliRunner().invoke(app, ["audit", "version", one, "--evidence", str(evidence)]).output
        assert "cannot be judged" in asked
        assert "holds no record" not in asked
    assert "cannot be judged" in told(evidence, "list")[1]
    use(evidence, chain["without-b"])
    assert told(evidence, "use", version, "--unjudged")[0] == 0
    assert events(evidence, "version")[-1].body["unjudged"] == "late"
    use(evidence, chain["without-b"])
    with pytest.raises(ValueError, match="cannot be judged"):
        rollback(evidence)
    assert rollback(evidence, unjudged=True) == version


@pytest.mark.slow
def test_a_run_trained_after_keys_were_destroyed_is_trusted(evidence, chain, base, make):
    close(evidence, "a")
    with Ledger.open(evidence) as ledger:
        ledger.destroy_keys(["a"])
    run = make("new", base, train=["x"])
    write_json(run.state_file, {**run.state, "finished": "2999-01-01T00:00:00+00:00"})
    use(evidence, add_version(evidence, run))


@pytest.mark.slow
def test_destroyed_keys_before_any_deletion_do_not_matter(evidence, chain, base, make):
    late = make("late", base, train=["x"])
    with Ledger.open(evidence) as ledger:
        ledger.destroy_keys(["c"])
    close(evidence, "a")
    use(evidence, add_version(evidence, late))


@pytest.mark.slow
def test_the_path_of_a_version_with_deleted_data_is_printed_with_a_warning(evidence, chain):
    use(evidence, chain["target"])
    arguments = ["versions", "show", "--path", "--evidence", str(evidence)]
    assert not CliRunner().invoke(app, arguments).stderr
    close(evidence, "a")
    done = CliRunner().invoke(app, arguments)
    assert (done.exit_code, done.stdout.strip()) == (0, str(path_of(evidence)))
    assert "holds data that was deleted (request R-1)" in done.stderr


@pytest.mark.slow
def test_a_chain_contains_what_it_learned_and_did_not_unlearn_since(tmp_path):
    dice = random.Random(0)
    outcomes = set()
    for case in range(30):
        with Ledger.open(tmp_path / str(case), create=True) as ledger:
            held = set()
            for place in range(6):
                kind = dice.choice(["training", "unlearning"])
                records = set(dice.sample("abcdef", 2))
                held = held | records if kind == "training" else held - records
                body = {"weights": str(place), "base": {"digest": str(place - 1)}, "splits": ["train"]}
                ledger.append(kind, body, records=[(record, record) for record in records])
            for record in "abcdef":
                ledger.append("closed", {"request": record}, records=[(record, record)])
            assert {event.body["request"] for event in Deletions(ledger).contained_in("5")} == held
            outcomes.add(len(held))
    assert len(outcomes) > 3


@pytest.mark.slow
def test_checking_many_versions_and_deletions_is_fast(tmp_path):
    with Ledger.open(tmp_path / "evidence", create=True) as ledger:
        records = [(str(number), str(number)) for number in range(2000)]
        ledger.append("training", {"weights": "0", "base": {"digest": "base"}, "splits": ["train"]}, records=records)
        for number in range(1, 61):
            about = {"weights": str(number), "base": {"digest": str(number - 1)}}
            deleted = records[number * 10 : number * 10 + 10]
            ledger.append("unlearning", {**about, "splits": ["forget"]}, records=deleted)
            ledger.append("training", {**about, "splits": ["retain"]}, records=records[1000:1050])
            ledger.append("closed", {"request": str(number)}, records=deleted)
        began = time.process_time()
        deletions = Deletions(ledger)
        assert [len(deletions.contained_in(str(number))) for number in range(61)] == [
            60 - number for number in range(61)
        ]
        assert time.process_time() - began < 5  # 0.1 s alone; minutes where each pair read the ledger anew


@pytest.mark.slow
def test_a_closed_request_prevents_a_switch_to_earlier_versions(tmp_path, evidence):
    ids = [row["id"] for row in cases.rows()]
    target = cases.measured_run(tmp_path / "target", [], [], kind="finetune", train=ids)
    request = cases.received(evidence, cases.write_rows(tmp_path), subject="Ann")
    rest = [row_id for row_id in ids if row_id not in request.ids()]
    first = cases.measured_run(tmp_path / "first", request.ids(), rest, base=target, seed="first")
    use(evidence, add_version(evidence, target))
    use(evidence, add_version(evidence, first))
    assert cases.close(evidence, request.id, first)[1].closed
    with pytest.raises(ValueError, match=f"holds data that was deleted .request {request.id}.*newest clean"):
        rollback(evidence)
    second = cases.received(evidence, str(tmp_path / "rows.jsonl"), subject="Bob")
    rest = [row_id for row_id in rest if row_id not in second.ids()]
    on_top = cases.measured_run(tmp_path / "second", second.ids(), rest, base=first, seed="second")
    use(evidence, add_version(evidence, on_top))
    assert cases.close(evidence, second.id, on_top)[1].closed
    with pytest.raises(ValueError, match=second.id):
        rollback(evidence)
    assert unclean(evidence) == {"target", "first"}
    assert [run for run in told(evidence, "list")[1].splitlines() if " second " in run]


def test_with_no_clean_version_the_message_says_so(evidence, base, make):
    version = add_version(evidence, make("run", base, train=["a"]))
    close(evidence, "a")
    with pytest.raises(ValueError, match="no version is clean"):
        use(evidence, version)


@pytest.mark.slow
def test_a_version_in_use_is_listed_as_unclean_after_a_deletion(evidence, chain):
    use(evidence, chain["target"])
    close(evidence, "a")
    assert [(v.run, deleted) for v, used, deleted in list_versions(evidence) if used] == [("target", ["R-1"])]
