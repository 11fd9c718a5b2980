"""Forward passes of an evaluation: every row once, also after a kill or a full disk, which leave old results intact."""

import json
import os
import resource
import signal
from collections import Counter

import pytest

from llm_forget.cli.main import NO_ROOM
from llm_forget.evals.records import RecordWriter
from llm_forget.evals.suite import load_suite
from llm_forget.workflows.evaluate import evaluate
from tests.support.evaluate_worker import watching
from tests.support.forked import forked, llm_forget

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("own_cache")]

ROLES = ("before", "unlearned", "oracle")
FEW = {"quiet": True, "batch_size": 1, "limit": 2}  # 14 records of each of three models, each forwarded alone


@pytest.fixture
def forwarded(monkeypatch):
    """Record the inputs of the models by role: target tokens of teacher-forced rows, and prompts to continue."""
    from transformers import LlamaForCausalLM

    counts = Counter()

    def note(model, kind, number):
        off = {layer.disable_adapters for layer in model.modules() if hasattr(layer, "lora_A")}
        role = {(): "oracle", (True,): "before", (False,): "unlearned"}[tuple(off)]
        counts[role, kind] += number

    monkeypatch.setattr(LlamaForCausalLM, "forward", watching(LlamaForCausalLM.forward, note))
    return counts


def measured(files):
    """Return target tokens and prompts of all record files, complete or not; refuses duplicates."""
    counts, seen = Counter(tokens=0, prompts=0), set()
    for path in files:
        for line in map(json.loads, path.read_text().splitlines()[1:]):
            place = (path.parent, path.name.partition(".")[0], line["id"], line.get("answer_index", line.get("sample")))
            assert place not in seen
            seen.add(place)
            counts["prompts" if "text" in line else "tokens"] += 1 if "text" in line else line["n"]
    return counts


def of(forwarded, role):
    return {kind: forwarded[role, kind] for kind in ("tokens", "prompts")}


def test_the_tofu_suite_forwards_every_row_once_through_each_model(make_run, shared, forwarded):
    source = {"path": "locuslab/TOFU"}
    run = make_run(
        "run",
        data_path=str(shared / "data/tofu"),
        forget={**source, "name": "forget01"},
        splits={"forget_perturbed": {**source, "name": "forget01_perturbed"}},
        retain=None,
        holdout=None,
        max_length=2048,
    )
    evaluate(run.path, "tofu", limit=2, quiet=True)
    files = {role: {*(run.records / role).glob("*.jsonl")} for role in ROLES}
    judged = {path for paths in files.values() for path in paths if path.name.startswith("forget_judged")}
    assert {len(paths) for paths in files.values()} == {len(load_suite("tofu").probes)}
    for role in ROLES:
        # The target reads the answers of each model.
        own = files[role] - judged | (judged if role == "before" else set())
        assert of(forwarded, role) == measured(own)
        assert forwarded[role, "prompts"] == 4 * 2


def killed_after(run, count):
    """An evaluation in a process that is killed when so many records are kept."""
    append, seen = RecordWriter.append, []

    def append_and_die(writer, records):
        records = list(records)
        append(writer, records)
        seen.extend(records)
        if len(seen) >= count:
            os.kill(os.getpid(), signal.SIGKILL)

    RecordWriter.append = append_and_die
    evaluate(run.path, **FEW)


def files_of(folder, run):
    """Where each record is first written: the cache in a folder, and for other records the run."""
    cached = {path for path in folder.rglob("*.jsonl*") if path.parent.name == "records"}
    names = {path.name.partition(".")[0][:12] for path in cached}
    own = (path for path in run.records.rglob("*.jsonl*") if path.name.partition(".")[0][-12:] not in names)
    return [*cached, *own]


def total(forwarded):
    """Tokens and prompts of all roles together."""
    return Counter({kind: sum(forwarded[role, kind] for role in ROLES) for kind in ("tokens", "prompts")})


def whole(results):
    """All numbers of an evaluation but the time it took."""
    return {key: value for key, value in results.items() if key != "seconds"}


def test_a_killed_evaluation_resumes_with_the_rows_it_had_not_measured(make_run, tmp_path, monkeypatch, forwarded):
    run, evaluations = make_run("run"), {}
    for after in (6, 33, None):  # within the first model, within the last one, and undisturbed
        forwarded.clear()
        monkeypatch.setenv("LLM_FORGET_CACHE", str(tmp_path / f"{after}"))
        kept = Counter()
        if after is not None:
            assert forked(lambda count=after: killed_after(run, count)).returncode == -signal.SIGKILL
            assert not run.results_file.exists()
            assert list(tmp_path.rglob("*.partial"))
            kept = measured(files_of(tmp_path / f"{after}", run))
            assert kept.total() > after  # tokens
        evaluations[after] = whole(evaluate(run.path, **FEW))
        assert not list(tmp_path.rglob("*.partial"))
        assert total(forwarded) + kept == measured(files_of(tmp_path / f"{after}", run))
        run.records.rename(tmp_path / f"records-{after}")
        run.results_file.unlink()
    assert evaluations[6] == evaluations[33] == evaluations[None]


def evaluated_on_a_full_disk(run, size):
    """Run ``llm-forget evaluate`` with a maximum file size, which simulates a full disk."""

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        llm_forget("evaluate", run.path)()

    return forked(limited)


def test_a_full_disk_during_an_evaluation_is_reported_and_the_evaluation_resumes(make_run, tmp_path, forwarded):
    run = make_run("run")
    stopped = evaluated_on_a_full_disk(run, 9_000)  # answers fit, the three times as many false answers do not
    assert (stopped.returncode, stopped.stderr.splitlines()[-1]) == (5, f"llm-forget: {NO_ROOM}")
    assert "Traceback" not in stopped.stderr
    assert not run.results_file.exists()
    assert not run.rows_file.exists()
    assert not list(tmp_path.rglob("*.tmp"))
    lines = evaluate(run.path, quiet=True)["suites"]["suite"]["metrics"]
    assert {name: line["n"] for name, line in lines.items()} == {**dict.fromkeys(lines, 5), "retain_probability": 4}
    # Two probes of the oracle at least were on disk.
    answers = next((run.records / "oracle").glob("forget-*")), next((run.records / "oracle").glob("*_paraphrase-*"))
    assert total(forwarded)["tokens"] <= (measured(files_of(tmp_path, run)) - measured(answers))["tokens"]
    assert not list(tmp_path.rglob("*.partial"))


def test_results_stay_unchanged_if_the_disk_is_full_when_they_are_rewritten(make_run, forwarded):
    run = make_run("run")
    first = evaluate(run.path, quiet=True)
    old = run.results_file.read_bytes()
    assert run.rows_file.stat().st_size < len(old) - 100
    forwarded.clear()
    stopped = evaluated_on_a_full_disk(run, len(old) - 100)
    assert (stopped.returncode, stopped.stderr.splitlines()[-1]) == (5, f"llm-forget: {NO_ROOM}")
    assert run.results_file.read_bytes() == old
    assert not list(run.path.rglob("*.tmp"))
    assert whole(evaluate(run.path, quiet=True)) == whole(first)
    assert not forwarded
