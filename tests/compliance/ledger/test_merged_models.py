"""Merged models: noted once, checked first, and what went into them is followed, with every doubt against them."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from llm_forget.cli.main import app
from llm_forget.compliance.certificates import certificate, claims
from llm_forget.compliance.ledger.ledger import Event, Ledger
from llm_forget.compliance.ledger.record_runs import note_run, weights_of
from llm_forget.compliance.requests import close, intake
from llm_forget.compliance.versions.deletion_check import Deletions
from llm_forget.compliance.versions.lineage import training_history
from llm_forget.compliance.versions.purge import plan_purge
from llm_forget.compliance.versions.record_history import record_trail, version_lineage
from llm_forget.compliance.versions.versions import add_version, list_versions, path_of, rollback, use
from llm_forget.core.digests import file_digest
from llm_forget.core.errors import AdapterRefused
from llm_forget.core.files import write_json
from llm_forget.core.run_directory import Run
from llm_forget.core.strict_json import canonical_digest
from llm_forget.models.digest import source_digest
from llm_forget.publish.ledger_gate import refuse_deleted
from tests.support import request_cases as cases

# The rule, told as a ledger: T was trained on a and b; each adapter lies on T.


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger.open(tmp_path / "evidence", create=True) as opened:
        yield opened


def pairs(records: str) -> list[tuple[str, str]]:
    return [(record, record) for record in records]


def trained(ledger: Ledger, weights: str, base: str, records: str, splits: str = "train") -> None:
    body = {"run": weights, "weights": weights, "base": {"name": base, "digest": base}, "splits": [splits]}
    ledger.append("training", body, records=pairs(records))


def unlearned(ledger: Ledger, weights: str, base: str, records: str) -> None:
    body = {"run": weights, "weights": weights, "base": {"name": base, "digest": base}, "splits": ["forget"]}
    ledger.append("unlearning", body, records=pairs(records))


def merged(ledger: Ledger, weights: str, beneath: str, /, precision: str = "as loaded", **scales: float) -> None:
    sources = [{"run": name, "weights": name, "scale": scale} for name, scale in scales.items()]
    base = {"name": beneath, "digest": beneath}
    body = {"run": weights, "weights": weights, "combination": "cat", "sources": sources, "beneath": base}
    ledger.append("merge", {**body, "base_precision": precision, "files": "x"})


def verified(ledger: Ledger, request: str, weights: str, answer: str) -> None:
    ledger.append("request", {"request": request, "state": "verified", "weights": weights, "answer": answer})


def closed(ledger: Ledger, records: str, request: str = "R") -> None:
    ledger.append("closed", {"request": request}, records=pairs(records))


def unclean(ledger: Ledger, *models: str) -> set[str]:
    deletions = Deletions(ledger)
    return {model for model in models if deletions.contained_in(model)}


@pytest.fixture
def target(ledger: Ledger) -> Ledger:
    trained(ledger, "T", "hub", "ab")
    return ledger


def test_a_merge_of_one_run_contains_what_the_run_contains(target: Ledger) -> None:
    unlearned(target, "U", "T", "a")
    trained(target, "F", "T", "c")
    merged(target, "MU", "T", U=1.0)
    merged(target, "MF", "T", F=1.0)
    trained(target, "on-MU", "MU", "d")
    trained(target, "again", "MU", "a")
    closed(target, "a")
    assert unclean(target, "T", "U", "MU", "on-MU", "again", "F", "MF") == {"T", "again", "F", "MF"}


def test_a_record_that_one_source_forgot_and_another_left_is_contained(target: Ledger) -> None:
    unlearned(target, "no-a", "T", "a")
    unlearned(target, "no-b", "T", "b")
    unlearned(target, "no-a-too", "T", "a")
    merged(target, "M", "T", **{"no-a": 1.0, "no-b": 1.0})
    merged(target, "both", "T", **{"no-a": 1.0, "no-a-too": 1.0})
    closed(target, "a")
    assert unclean(target, "no-a", "M", "both") == {"M"}


def test_a_record_that_any_source_learned_is_contained(target: Ledger) -> None:
    trained(target, "F", "T", "c")
    unlearned(target, "no-a", "T", "a")
    trained(target, "no-a", "T", "c", "retain")
    merged(target, "M", "T", F=0.1, **{"no-a": 1.0})
    closed(target, "c")
    assert unclean(target, "T", "M", "F", "no-a") == {"M", "F", "no-a"}


def test_half_an_adapter_forgets_half(target: Ledger) -> None:
    unlearned(target, "one", "T", "a")
    unlearned(target, "two", "T", "a")
    merged(target, "half", "T", one=0.5)
    merged(target, "halves", "T", one=0.5, two=0.5)
    merged(target, "thirds", "T", one=0.3, two=0.3)
    closed(target, "a")
    assert unclean(target, "half", "halves", "thirds") == {"half", "thirds"}


def test_a_record_that_the_base_forgot_stays_forgotten(target: Ledger) -> None:
    unlearned(target, "no-a", "T", "a")
    trained(target, "F", "no-a", "c")
    trained(target, "G", "no-a", "d")
    merged(target, "M", "no-a", F=0.3, G=-0.5)
    merged(target, "only-away", "no-a", G=-0.5)
    closed(target, "a")
    assert unclean(target, "M", "F", "only-away") == set()
    closed(target, "d", "R-2")
    assert unclean(target, "M", "F") == {"M"}


def test_merging_into_other_weights_than_were_trained_on_forgets_nothing(target: Ledger) -> None:
    unlearned(target, "U", "T", "a")
    merged(target, "same", "T", U=1.0)
    merged(target, "M", "T", "original", U=1.0)
    closed(target, "a")
    assert unclean(target, "same", "M") == {"M"}


@pytest.mark.parametrize("kind", ["trained", "unlearned"])
def test_subtracting_an_adapter_forgets_nothing_until_it_is_measured(target: Ledger, kind: str) -> None:
    (trained if kind == "trained" else unlearned)(target, "N", "T", "c" if kind == "trained" else "a")
    unlearned(target, "no-a", "T", "a")
    merged(target, "M", "T", N=-1.0)
    merged(target, "beside", "T", N=-1.0, **{"no-a": 1.0})
    closed(target, "c" if kind == "trained" else "a")
    assert unclean(target, "M", "beside") == {"M", "beside"}
    verified(target, "R", "M", "pass")
    assert unclean(target, "M", "beside") == {"beside"}
    verified(target, "R", "M", "fail")
    assert unclean(target, "M") == {"M"}


def test_subtracting_an_adapter_changes_nothing_for_unrelated_records(target: Ledger) -> None:
    trained(target, "N", "T", "z")
    unlearned(target, "no-a", "T", "a")
    merged(target, "M", "T", N=-1.0, **{"no-a": 1.0})
    closed(target, "a")
    assert unclean(target, "M", "N") == {"N"}, "that its base knew a is no matter of what is taken away"
    closed(target, "y", "R-2")
    assert unclean(target, "M", "N") == {"N"}


def test_a_pass_on_the_merged_weights_counts_for_the_records_of_that_request_only(target: Ledger) -> None:
    unlearned(target, "no-a", "T", "a")
    unlearned(target, "no-b", "T", "b")
    merged(target, "M", "T", **{"no-a": 1.0, "no-b": 1.0})
    closed(target, "a", "R-a")
    closed(target, "b", "R-b")
    verified(target, "R-a", "M", "pass")
    assert [event.body["request"] for event in Deletions(target).contained_in("M")] == ["R-b"]
    trained(target, "F", "M", "a")
    assert [event.body["request"] for event in Deletions(target).contained_in("F")] == ["R-a", "R-b"]


def test_a_merge_that_failed_a_policy_did_not_forget_even_if_its_run_did(target: Ledger) -> None:
    unlearned(target, "U", "T", "a")
    merged(target, "M", "T", U=1.0)
    verified(target, "R", "M", "fail")
    closed(target, "a")
    assert unclean(target, "U", "M") == {"M"}


def test_a_pass_for_one_request_does_not_hide_a_failure_for_another(target: Ledger) -> None:
    unlearned(target, "U", "T", "ab")
    merged(target, "M", "T", U=1.0)
    for model in ("U", "M"):
        verified(target, "RA", model, "fail")
        verified(target, "RB", model, "pass")
    closed(target, "a", "RA")
    assert unclean(target, "U", "M", "T") == {"U", "M", "T"}
    closed(target, "b", "RB")
    deletions = Deletions(target)
    assert {event.body["request"] for model in ("U", "M") for event in deletions.contained_in(model)} == {"RA"}
    for model in ("U", "M"):
        verified(target, "RA", model, "pass")
    assert unclean(target, "U", "M", "T") == {"T"}


def test_a_record_unlearned_from_a_merge_was_in_its_sources(ledger: Ledger) -> None:
    trained(ledger, "one", "hub", "x")
    trained(ledger, "two", "hub", "y")
    merged(ledger, "M", "hub", one=1.0, two=1.0)
    unlearned(ledger, "U", "M", "p")  # which nobody noted that anything learned
    closed(ledger, "p")
    assert unclean(ledger, "hub", "one", "two", "M", "U") == {"hub", "one", "two", "M"}
    unlearned(ledger, "V", "M", "x")
    closed(ledger, "x", "R-2")
    assert {model for model in ("hub", "one", "two", "M", "V") if "R-2" in requests(ledger, model)} == {"one", "M"}


def requests(ledger: Ledger, model: str) -> set[str]:
    return {event.body["request"] for event in Deletions(ledger).contained_in(model)}


def test_a_merge_contains_what_its_base_must_have_known_unless_all_sources_forgot_it(ledger: Ledger) -> None:
    unlearned(ledger, "U", "hub", "p")
    trained(ledger, "F", "hub", "x")
    merged(ledger, "M", "hub", U=1.0, F=1.0)
    merged(ledger, "alone", "hub", U=1.0)
    closed(ledger, "p")
    assert unclean(ledger, "hub", "U", "F", "M", "alone") == {"hub", "F", "M"}


def test_lineage_and_record_trail_include_a_merge(target: Ledger) -> None:
    unlearned(target, "U", "T", "a")
    merged(target, "M", "T", U=1.0)
    trained(target, "on-top", "M", "e")
    found = [(step.depth, step.event.kind, step.event.body["run"]) for step in training_history(target, "on-top")]
    assert found == [(0, "training", "on-top"), (1, "merge", "M"), (2, "training", "T"), (2, "unlearning", "U")]
    models = {model.run: (model.learned, model.forgot) for model in record_trail(target, "a").models}
    assert models == {"T": ([1], []), "U": ([1], [2]), "M": ([1], [2]), "on-top": ([1], [2])}
    assert version_lineage(target, "on-top").seqs("training") == [1, 4]


# Folders


Make = Callable[..., Run]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """``make(name, base, forget=[ids], retain=[ids])`` or ``train=[ids]``: a finished run with an adapter."""
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "config.json").write_text("{}")
    (tmp_path / "hub" / "model.safetensors").write_bytes(b"base")

    def made(name: str, base: str = "hub", **splits: list[str]) -> Run:
        kind, source = "unlearn" if "forget" in splits else "finetune", str(tmp_path / base)
        config = {"model_name_or_path": source, "use_peft": True}
        run = Run.start(tmp_path / name, kind, config, config, False)
        run.adapter.mkdir()
        (run.adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4}))
        (run.adapter / "adapter_model.safetensors").write_bytes(name.encode())
        files = {path.name: file_digest(path) for path in run.adapter.iterdir()}
        write_json(
            run.adapter / "manifest.json", {"files": files, "tensors": {}, "base": source_digest(source), "beneath": []}
        )
        data = {key: {"rows": len(ids), "digest": canonical_digest(ids), "ids": ids} for key, ids in splits.items()}
        base_facts = {"name": source, "revision": "main", "digest": source_digest(source)}
        write_json(run.provenance_file, {"kind": kind, "base": base_facts, "data": data, "seed": 0})
        run.finish()
        return run

    return made


def merge_of(folder: Path, *runs: Run, scales: tuple[float, ...] = (1.0,), **changes: Any) -> Path:
    """What `merge` leaves, with a few bytes for weights."""
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(f"{folder.name} {scales}".encode())
    base = runs[0].provenance["base"]
    sources = [
        {"run": run.path.name, "weights": weights_of(run), "scale": scale}
        for run, scale in zip(runs, scales * len(runs) if len(scales) == 1 else scales, strict=True)
    ]
    said = {
        "base": base["name"],
        "combination": "stack" if len(runs) == 1 else "cat",
        "sources": sources,
        "beneath": {"name": base["name"], "digest": base["digest"]},
        "base_precision": "as loaded",
        "files": {path.name: file_digest(path) for path in folder.iterdir()},
    }
    write_json(folder / "merge.json", {key: value for key, value in (said | changes).items() if value is not None})
    return folder


def kinds(events: list[Event]) -> list[str]:
    return [event.kind for event in events]


def test_a_merge_is_recorded_once_under_any_folder_name(ledger: Ledger, make: Make, tmp_path: Path) -> None:
    run = make("run", forget=["a"], retain=["b"])
    folder = merge_of(tmp_path / "merged", run)
    with pytest.raises(ValueError, match=r"merged from run 'run', which is not in the ledger.*audit note"):
        note_run(ledger, folder)
    note_run(ledger, run)
    (event,) = note_run(ledger, folder)
    assert event.body["weights"] == source_digest(str(folder))
    assert event.body["sources"] == [{"run": "run", "weights": weights_of(run), "scale": 1.0}]
    assert event.body["beneath"] == {"name": "hub", "digest": run.provenance["base"]["digest"]}
    assert str(tmp_path) not in json.dumps(event.body)
    assert note_run(ledger, shutil.copytree(folder, tmp_path / "copy")) == note_run(ledger, folder) == [event]
    assert kinds(ledger.events()) == ["unlearning", "training", "merge"]


@pytest.mark.parametrize("fault", ["bit", "gone", "more", "link", "config"])
def test_a_merged_folder_that_was_altered_is_refused(ledger: Ledger, make: Make, tmp_path: Path, fault: str) -> None:
    run = make("run", forget=["a"], retain=["b"])
    note_run(ledger, run)
    folder = merge_of(tmp_path / "merged", run)
    weights = folder / "model.safetensors"
    if fault == "bit":
        weights.write_bytes(b"rum")
    elif fault == "gone":
        weights.unlink()
    elif fault == "more":
        (folder / "model-00002-of-00002.safetensors").write_bytes(b"more")
    elif fault == "config":
        (folder / "config.json").write_text('{"vocab_size": 1}')
    else:
        weights.rename(tmp_path / "elsewhere")
        weights.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(AdapterRefused, match=r"merge\.json"):
        note_run(ledger, folder)
    assert not ledger.events("merge")


@pytest.mark.parametrize(
    "changes",
    [
        {"sources": None},
        {"sources": []},
        {"sources": [{"run": "x", "weights": "y", "scale": True}]},
        {"sources": [{"run": "x", "weights": "y"}]},
        {"beneath": {"name": "hub"}},
        {"files": {"../../x": "sha256:0"}},
        {"combination": 1},
    ],
)
def test_an_incomplete_merge_json_asks_to_merge_again(
    ledger: Ledger, make: Make, tmp_path: Path, changes: dict[str, Any]
) -> None:
    folder = merge_of(tmp_path / "merged", make("run", forget=["a"], retain=["b"]), **changes)
    with pytest.raises(ValueError, match="merge again"):
        note_run(ledger, folder)


@pytest.mark.slow
def test_versions_of_merged_models_are_added_used_rolled_back_compared_and_purged(make: Make, tmp_path: Path) -> None:
    evidence = tmp_path / "evidence"
    one, two = make("one", forget=["a"], retain=["b"]), make("two", forget=["a"], retain=["b", "c"])
    runs = [add_version(evidence, run) for run in (one, two)]
    ids = []
    for run in (one, two):
        folder = merge_of(tmp_path / f"merged-{run.path.name}", run)
        write_json(folder / "notes.json", {"text": "no part of it"})
        ids.append(add_version(evidence, folder))
        assert add_version(evidence, folder) == ids[-1]
        assert plan_purge(evidence, ids[-1]).remaining == folder
        shutil.rmtree(folder)
    known = {v.id: v for v, _, _ in list_versions(evidence)}
    assert [(known[one].part, known[one].kind, known[one].parent) for one in ids] == [
        ("model", "merge", runs[0]), ("model", "merge", runs[1]),
    ]  # fmt: skip
    assert sorted(path.name for path in path_of(evidence, ids[0]).iterdir()) == [
        "config.json", "model.safetensors", "tokenizer.json",
    ]  # fmt: skip
    for version in ids:
        use(evidence, version)
        for folder in (path_of(evidence), path_of(evidence).parent):
            assert source_digest(str(folder)) == known[version].weights
    assert rollback(evidence) == ids[0]
    code, text = told(evidence, "diff", *ids)
    assert (code, "one" in text, "two" in text) == (0, True, True)
    assert "merge" in told(evidence, "list")[1]
    assert "merged-one" in told(evidence, "show")[1]
    assert told(evidence, "purge", ids[1], "--yes")[0] == 0
    assert told(evidence, "purge", runs[1], "--yes")[0] == 0, "a merged model stands without its run"
    for path in evidence.rglob("*.json"):
        assert path.name == "run.json" or str(tmp_path) not in path.read_text()


@pytest.mark.slow
def test_a_run_on_a_merged_model_adds_the_merge_and_its_history(make: Make, tmp_path: Path) -> None:
    evidence = tmp_path / "evidence"
    target = make("target", train=["a", "b"])
    without = make("without", "target", forget=["a"], retain=["b"])
    with Ledger.open(evidence, create=True) as ledger:
        note_run(ledger, target)
        note_run(ledger, without)
    merge_of(tmp_path / "merged", without)
    version = add_version(evidence, make("on-top", "merged", train=["c"]))
    assert [v.run for v, _, _ in list_versions(evidence)] == ["merged", "on-top"]
    shutil.rmtree(tmp_path / "merged")
    use(evidence, version)
    with Ledger.open(evidence) as ledger:
        ledger.append("closed", {"request": "R-a"}, records=pairs("a"))
        ledger.append("closed", {"request": "R-b"}, records=pairs("b"))
    assert {v.run: deleted for v, _, deleted in list_versions(evidence)} == {"merged": ["R-b"], "on-top": ["R-b"]}
    with Ledger.open(evidence) as ledger:
        assert note_run(ledger, path_of(evidence, list_versions(evidence)[0][0].id).parent) == ledger.events("merge")


@pytest.mark.slow
def test_a_combined_adapter_is_recorded_and_stored_with_its_base(make: Make, tmp_path: Path) -> None:
    evidence = tmp_path / "evidence"
    target = make("target", train=["a", "b"])
    parts = [make(name, "target", forget=[name], retain=["z"]) for name in "ab"]
    base = parts[0].provenance["base"]
    config = {"model_name_or_path": base["name"], "use_peft": True}
    run = Run.start(tmp_path / "sum", "combine", config, config, False)
    shutil.copytree(parts[0].adapter, run.adapter)
    (run.adapter / "adapter_model.safetensors").write_bytes(b"sum")
    names = ("adapter_config.json", "adapter_model.safetensors")
    manifest = {"files": {name: file_digest(run.adapter / name) for name in names}, "base": base["digest"]}
    write_json(run.adapter / "manifest.json", manifest)
    facts = {
        "combination": "cat",
        "sources": [{"run": part.path.name, "weights": weights_of(part), "scale": 1.0} for part in parts],
        "beneath": {"name": "target", "digest": base["digest"]},
    }
    write_json(run.provenance_file, {"kind": "combine", "base": base, **facts})
    files = {f"adapter/{path.name}": file_digest(path) for path in run.adapter.iterdir()}
    write_json(run.path / "merge.json", {**facts, "files": files})
    run.finish()
    with Ledger.open(evidence, create=True) as ledger:
        for part in (target, *parts):
            note_run(ledger, part)
        (event,) = note_run(ledger, run)
        assert event.body["weights"] == source_digest(str(run.path))
    version = add_version(evidence, run)
    shutil.rmtree(target.path)
    shutil.rmtree(run.path)
    use(evidence, version)
    assert source_digest(str(path_of(evidence))) == event.body["weights"]
    with Ledger.open(evidence) as ledger:
        ledger.append("closed", {"request": "R-a"}, records=pairs("a"))
    assert {v.run for v, _, deleted in list_versions(evidence) if deleted} == {"target", "sum"}


def told(evidence: Path, *arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["versions", *arguments, "--evidence", str(evidence)])
    return done.exit_code, done.output


# Closing a request with a merged model


def measured_merge(
    folder: Path, *runs: Path, value: float = 0.1, digest: str = "", scales: tuple[float, ...] = (1.0,)
) -> Path:
    """A merged folder with results of its own, as `merge --measure` leaves it."""
    from llm_forget.core.config import model_part
    from llm_forget.evals.runner import EvaluatedModel

    made = merge_of(folder, *map(Run, runs), scales=scales)
    results = json.loads((runs[0] / "results.json").read_text())
    found = EvaluatedModel("unlearned", model_part({"model_name_or_path": str(made), "dtype": "float32"})).digest
    results["models"]["unlearned"] = {"name": folder.name, "digest": digest or found}
    results["suites"]["basic"]["metrics"]["forget_probability"].update(cases.line(value))
    write_json(made / "results.json", results)
    return made


@pytest.fixture
def asked(tmp_path: Path) -> tuple[Path, Path]:
    """Evidence with an open request about Ann, and a run that forgot her rows."""
    evidence = tmp_path / "evidence"
    made = cases.received(evidence, cases.write_rows(tmp_path), subject="Ann")
    return evidence, cases.measured_run(tmp_path / "run", made.ids(), OTHERS)


OTHERS = [row["id"] for row in cases.rows() if row["subject"] != "Ann"]
ANN = [row["id"] for row in cases.rows() if row["subject"] == "Ann"]


@pytest.mark.slow
def test_a_certificate_is_about_the_merged_weights_and_names_the_run_as_well(
    asked: tuple[Path, Path], tmp_path: Path
) -> None:
    evidence, run = asked
    folder = measured_merge(tmp_path / "merged", run, value=0.12)
    assert cases.close(evidence, "req-0001", run, merged=folder)[1].closed
    path = certificate.issue(evidence, "req-0001")
    body = certificate.verify(path, evidence / "signing.pub", evidence=evidence)
    made = body["artefacts"]
    assert made["after"]["digest"] == source_digest(str(folder))
    assert (made["after"]["name"], made["after"]["kind"], made["run"]["kind"]) == ("merged", "merged", "adapter")
    assert made["run"]["digest"] == made["merged"]["sources"][0]["weights"] == weights_of(Run(run))
    assert made["run"]["files"]["adapter_model.safetensors"] == file_digest(run / "adapter/adapter_model.safetensors")
    assert made["after"]["files"]["model.safetensors"] == file_digest(folder / "model.safetensors")
    assert body["exactness"]["class"] == "approximate"
    assert {"adapter", "equality"} <= body["does_not_show"].keys()
    assert "weights" not in body["does_not_show"]
    assert body["verification"]["suites"]["basic"]["metrics"]["forget_probability"]["value"] == 0.12
    page = path.with_suffix(".html").read_text()
    assert weights_of(Run(run)) in page
    assert "with that adapter can subtract it" in page
    forged = json.loads(path.read_text())["body"]
    del forged["does_not_show"]["adapter"]
    assert claims.contradiction(forged) == "it omits a caveat"
    assert not [v for v, _, deleted in versions_of(evidence, run, folder) if deleted]


def versions_of(evidence: Path, *made: Path) -> list[Any]:
    for folder in made:
        add_version(evidence, folder)
    return list_versions(evidence)


@pytest.mark.slow
def test_without_results_of_its_own_weights_a_merged_model_closes_nothing(
    asked: tuple[Path, Path], tmp_path: Path
) -> None:
    evidence, run = asked
    folder = measured_merge(tmp_path / "merged", run, digest="sha256:of the run")
    with pytest.raises(ValueError, match=r"of other weights.*--measure"):
        cases.close(evidence, "req-0001", run, merged=folder)
    (folder / "results.json").unlink()
    with pytest.raises(ValueError, match=r"was not evaluated.*--measure"):
        cases.close(evidence, "req-0001", run, merged=folder)
    with pytest.raises(ValueError, match=r"no merge\.json"):
        cases.close(evidence, "req-0001", run, merged=run)
    other = cases.measured_run(tmp_path / "other", OTHERS[:3], OTHERS[3:], seed="other")
    with pytest.raises(ValueError, match="was not merged from run"):
        cases.close(evidence, "req-0001", run, merged=measured_merge(tmp_path / "of-other", other))
    away = merge_of(tmp_path / "away", Run(run), scales=(-1.0,))
    with pytest.raises(ValueError, match=r"subtracts .scale -1. the unlearning of"):
        cases.close(evidence, "req-0001", run, merged=away)
    with Ledger.open(evidence) as ledger:
        assert not ledger.events("closed")


@pytest.mark.slow
def test_a_merged_model_that_fails_leaves_the_request_open_even_if_its_run_passes(
    asked: tuple[Path, Path], tmp_path: Path
) -> None:
    evidence, run = asked
    folder = measured_merge(tmp_path / "merged", run, value=0.9)
    assert cases.close(evidence, "req-0001", run, merged=folder)[0] == "fail"
    assert cases.close(evidence, "req-0001", run)[1].closed
    assert {v.run: deleted for v, _, deleted in versions_of(evidence, run, folder)} == {
        "run": [], "merged": ["req-0001"],
    }  # fmt: skip


@pytest.mark.slow
def test_a_subtracted_fine_tuning_on_the_rows_can_close_once_it_is_measured(
    asked: tuple[Path, Path], tmp_path: Path
) -> None:
    evidence, _ = asked
    target = cases.measured_run(tmp_path / "target", [], [], kind="finetune", train=[*OTHERS, *ANN], seed="t")
    tuned = {}
    for name, ids in (("some", ANN[:2]), ("all", ANN)):
        tuned[name] = cases.measured_run(tmp_path / name, [], [], kind="finetune", train=ids, base=target, seed=name)
        shutil.move(tuned[name] / "model", tuned[name] / "adapter")
        (tuned[name] / "adapter" / "model.safetensors").rename(tuned[name] / "adapter" / "adapter_model.safetensors")
        (tuned[name] / "adapter" / "config.json").rename(tuned[name] / "adapter" / "adapter_config.json")
        files = {path.name: file_digest(path) for path in (tuned[name] / "adapter").iterdir()}
        write_json(tuned[name] / "adapter" / "manifest.json", {"files": files, "tensors": {}})
    part = measured_merge(tmp_path / "part", tuned["some"], scales=(-1.0,))
    with pytest.raises(ValueError, match="did not learn 1 of the 3 rows"):
        cases.close(evidence, "req-0001", tuned["some"], merged=part)
    folder = measured_merge(tmp_path / "away", tuned["all"], scales=(-1.0,))
    assert cases.close(evidence, "req-0001", tuned["all"], merged=folder)[1].closed
    body = certificate.verify(certificate.issue(evidence, "req-0001"), evidence / "signing.pub", evidence=evidence)
    assert body["exactness"]["class"] == "approximate"
    assert "subtracting an adapter" in body["method"]["name"]
    assert body["artefacts"]["before"]["name"] == "target"
    assert {v.run: deleted for v, _, deleted in versions_of(evidence, target, tuned["all"], folder)} == {
        "target": ["req-0001"], "all": ["req-0001"], "away": [],
    }  # fmt: skip


@pytest.mark.slow
def test_a_merge_with_a_source_trained_on_the_rows_is_not_certified(asked: tuple[Path, Path], tmp_path: Path) -> None:
    evidence, run = asked
    other = cases.measured_run(tmp_path / "other", OTHERS[:1], ["ann-0"], seed="other")
    with Ledger.open(evidence) as ledger:
        note_run(ledger, other)
    folder = measured_merge(tmp_path / "merged", run, other)
    with pytest.raises(ValueError, match=r"also merged from run 'other', which was trained on 1 "):
        cases.close(evidence, "req-0001", run, merged=folder)


@pytest.mark.slow
def test_a_combination_of_closing_runs_is_refused_until_it_is_verified_itself(
    asked: tuple[Path, Path], tmp_path: Path
) -> None:
    evidence, run = asked
    other = cases.measured_run(tmp_path / "other", OTHERS[:1], OTHERS[1:], seed="other")
    assert cases.close(evidence, "req-0001", run)[1].closed
    with Ledger.open(evidence) as ledger:
        note_run(ledger, other)
    folder = measured_merge(tmp_path / "merged", run, other)
    version = add_version(evidence, folder)
    with pytest.raises(ValueError, match="req-0001"):
        use(evidence, version)
    answer, request = cases.close(evidence, "req-0001", run, merged=folder)
    assert (answer, request.state) == ("pass", "closed")
    assert use(evidence, version) == version
    body = certificate.verify(certificate.issue(evidence, "req-0001"), evidence / "signing.pub", evidence=evidence)
    assert body["artefacts"]["after"]["name"] == "run", "the certificate stays that of the run"


@pytest.mark.slow
def test_a_real_merge_is_recorded_versioned_and_certified(
    tmp_path: Path, make_run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llm_forget.workflows.merge import merge

    monkeypatch.chdir(tmp_path)
    evidence = tmp_path / "evidence"
    runs = [make_run(name, seed, dtype="float32", use_cpu=True) for seed, name in enumerate(("one", "two"))]
    for run in runs:
        base = {"name": run.config["model_name_or_path"], "revision": "main"}
        base["digest"] = json.loads((run.adapter / "manifest.json").read_text())["base"]
        data = {name: {"rows": n, "digest": "sha256:0", "ids": [f"{name}{i}" for i in range(n)]}
                for name, n in (("forget", 5), ("retain", 9))}  # fmt: skip
        write_json(run.provenance_file, {"kind": "unlearn", "base": base, "data": data})
    merge(runs[0].path, "merged", measure=True)
    merge([run.path for run in runs], "sum", scales=(0.5, 0.5))
    merge([run.path for run in runs], "adapter", as_adapter=True)
    source = str(tmp_path / "forget.jsonl")
    made = cases.received(evidence, source, ids=[f"forget{i}" for i in range(5)])
    policy = tmp_path / "lax.yaml"
    policy.write_text("rules: [{line: forget_probability, at_most: 99.0, of: oracle}]")
    with intake.locked_request(evidence, made.id) as (ledger, request):
        note_run(ledger, runs[1])
        answer, _ = close.close(ledger, request, runs[0].path, merged="merged", policy=policy)
    assert (answer, request.state) == ("pass", "closed")
    body = certificate.verify(certificate.issue(evidence, made.id), evidence / "signing.pub", evidence=evidence)
    assert body["artefacts"]["after"]["digest"] == source_digest("merged")
    for folder in ("merged", "sum", "adapter"):
        version = add_version(evidence, Path(folder))
        use(evidence, version)
        assert source_digest(str(path_of(evidence))) == source_digest(folder)


@pytest.mark.slow
def test_publishing_checks_the_merged_weights(asked: tuple[Path, Path], tmp_path: Path) -> None:
    evidence, run = asked
    folder = measured_merge(tmp_path / "merged", run, value=0.9)
    assert cases.close(evidence, "req-0001", run, merged=folder)[0] == "fail"
    assert cases.close(evidence, "req-0001", run)[1].closed
    refuse_deleted(evidence, run, note=True)
    with pytest.raises(ValueError, match=r"merged' holds data that was deleted .req-0001."):
        refuse_deleted(evidence, run, note=True, merged=folder)
    unknown = merge_of(tmp_path / "unknown", Run(run), base_precision="original")
    refuse_deleted(evidence, run, note=False, merged=unknown)
    with pytest.raises(ValueError, match="holds data"):
        refuse_deleted(evidence, run, note=True, merged=unknown)


@pytest.mark.slow
def test_a_model_that_cannot_be_judged_is_not_published(asked: tuple[Path, Path], tmp_path: Path) -> None:
    evidence, run = asked
    assert cases.close(evidence, "req-0001", run)[1].closed
    other = tmp_path / "another-base"
    other.mkdir()
    (other / "config.json").write_text("{}")
    (other / "model.safetensors").write_bytes(b"another")
    late = cases.measured_run(tmp_path / "late", [], [], kind="finetune", train=ANN, seed="late", base=other)
    with Ledger.open(evidence) as ledger:
        ledger.destroy_keys(["Ann"])
    with pytest.raises(ValueError, match=r"cannot be judged: run 'late'.*not published"):
        refuse_deleted(evidence, late, note=True)


@pytest.mark.slow
def test_the_merge_command_records_the_merge_if_there_is_evidence(
    tmp_path: Path, make_run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LLM_FORGET_EVIDENCE", raising=False)
    run = make_run("one", dtype="float32", use_cpu=True)
    done = CliRunner().invoke(app, ["merge", str(run.path), "--output_dir", "before"])
    assert (done.exit_code, "noted" in done.output, Path("evidence").exists()) == (0, False, False)
    Ledger.open(Path("evidence"), create=True).close()
    done = CliRunner().invoke(app, ["merge", str(run.path), "--output_dir", "unknown"])
    assert (done.exit_code, "not noted in 'evidence': run" in done.stderr) == (0, True), done.output
    base = {"name": run.config["model_name_or_path"], "revision": "main"}
    base["digest"] = json.loads((run.adapter / "manifest.json").read_text())["base"]
    data = {"forget": {"rows": 1, "digest": "sha256:0", "ids": ["a"]}}
    write_json(run.provenance_file, {"kind": "unlearn", "base": base, "data": data})
    done = CliRunner().invoke(app, ["merge", str(run.path), "--output_dir", "known"])
    assert (done.exit_code, "noted in 'evidence' (event 2)" in done.stdout) == (0, True), done.output
    with Ledger.open(Path("evidence")) as ledger:
        assert [event.kind for event in ledger.events()] == ["unlearning", "merge"]
