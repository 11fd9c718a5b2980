"""Evaluation over several processes: every row once, and the records and results of one process, even after a kill."""

import json
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from llm_forget.core.launch import refuse_sharded_models
from llm_forget.evals.probes.distributed import divide
from llm_forget.evals.records import GenerationRecord, RecordWriter, load_records
from llm_forget.evals.suite import parse_suite
from llm_forget.workflows.evaluate import _refuse_tasks, evaluate
from tests.support import evaluate_worker
from tests.support.evaluate_worker import FORWARDED, KEPT, watched
from tests.support.forked import Ended, forked_world, llm_forget

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _count_what_is_measured(request: pytest.FixtureRequest) -> None:
    if "make_run" in request.fixturenames:
        request.getfixturevalue("own_cache")


SUITE = {
    "probes": {
        "forget": {"probe": "logprobs", "split": "forget"},
        "perturbed": {"probe": "logprobs", "split": "forget", "field": "perturbed_answer"},
        "text": {"probe": "generate", "split": "forget", "max_new_tokens": 6},
        "judged": {"probe": "judge", "generations": "text"},
        "pull": {"probe": "gradients", "split": "retain", "limit": 5},
        "book": {"probe": "logprobs", "split": "book"},  # two answers of several windows each
    },
    "metrics": {
        "probability": {"metric": "probability", "records": "forget", "goal": "match_oracle"},
        "rouge": {"metric": "rouge", "generations": "text", "goal": "lower"},
        "fluency": {"metric": "generated_perplexity", "judged": "judged", "goal": "keep"},
        "book_probability": {"metric": "probability", "records": "book", "goal": "keep"},
    },
}
RECORDS = 3 * (5 + 15 + 5 + 5 + 5 + 2)  # of three models


@pytest.fixture
def keys(make_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Arguments of an evaluation of a fresh run, also in ``keys.json`` for the worker."""
    book = [{"id": n, "prompt": "Go on.", "completion": f"The book {n} goes on and on. " * 5} for n in ("one", "two")]
    (tmp_path / "book.jsonl").write_text("".join(json.dumps(row) + "\n" for row in book))
    suite = tmp_path / "many.yaml"
    suite.write_text(yaml.safe_dump(SUITE, sort_keys=False))
    run = make_run("run", splits={"book": str(tmp_path / "book.jsonl")}, max_length=64)
    given = {"run": str(run.path), "suite": str(suite), "batch_size": 2, "retain": str(tmp_path / "retain.jsonl")}
    (tmp_path / "keys.json").write_text(json.dumps(given))
    return given


def work(folder: Path, mode: str) -> list[Ended]:
    """Two processes that find each other as launched ones do, without a launcher and without importing anything."""
    return forked_world(2, lambda _: evaluate_worker.main(folder, mode))


def numbers(content: Any) -> dict[str, Any]:
    """Leaves of results by their path, without those that name the time."""
    found: dict[str, Any] = {}

    def visit(value: Any, path: str) -> None:
        inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, child in inner:
            visit(child, f"{path}/{key}")
        if not isinstance(value, dict | list):
            found[path] = value

    visit({key: value for key, value in content.items() if key != "seconds"}, "")
    return found


def assert_same(left: Any, right: Any) -> None:
    one, two = numbers(left), numbers(right)
    assert one.keys() == two.keys()
    for path, value in one.items():
        assert two[path] == (pytest.approx(value, rel=1e-5, nan_ok=True) if isinstance(value, float) else value), path


def files_of(folder: Path) -> dict[str, Any]:
    """Every record file below a folder by its relative name: key, order and content of its records."""
    return {
        str(path.relative_to(folder)): {str(i): record.to_dict() for i, record in enumerate(load_records(path) or [])}
        for path in sorted(folder.rglob("*.jsonl"))
    }


@contextmanager
def counting(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Within the block this process counts as the worker does, from zero."""
    from transformers import LlamaForCausalLM

    FORWARDED.update(tokens=0, prompts=0)
    KEPT.clear()
    with monkeypatch.context() as patched:
        # Set to their present values, so that monkeypatch restores them.
        patched.setattr(LlamaForCausalLM, "forward", LlamaForCausalLM.forward)
        patched.setattr(RecordWriter, "append", RecordWriter.append)
        watched("whole")
        yield


def kept_in(folder: Path) -> list[tuple[str, tuple[Any, ...]]]:
    """Rank in the file name, and file and key, of every record in a partial file."""
    found = []
    for path in folder.rglob("*.partial"):
        name, _, rank = path.name.removesuffix(".partial").partition(".jsonl")
        for line in map(json.loads, path.read_text().splitlines()[1:]):
            found.append((rank.strip("."), (f"{name}.jsonl", line["id"], line.get("answer_index", line.get("sample")))))
    return found


@pytest.mark.processes
def test_two_processes_give_the_results_of_one_and_forward_every_row_once(
    keys: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Path(keys["run"])
    for done in work(tmp_path, "whole"):
        assert done.returncode == 0, done.stderr[-3000:]
    facts = [json.loads((tmp_path / f"facts-{rank}.json").read_text()) for rank in range(2)]
    assert [fact["processes"] for fact in facts] == [2, 2]
    written = json.loads((run / "results.json").read_text())
    assert facts[0]["results"] == facts[1]["results"] == written
    two = {**files_of(run / "records"), **files_of(tmp_path / "cache")}
    assert len(two) == 3 * 6 + 2 * 5  # of the run every probe and role; numbers of target and oracle in the cache
    assert not list(tmp_path.rglob("*partial"))

    # The same in one process, without earlier records.
    (run / "records").rename(tmp_path / "records-of-two")
    (run / "results.json").unlink()
    monkeypatch.setenv("LLM_FORGET_CACHE", str(tmp_path / "fresh"))
    with counting(monkeypatch):
        assert_same(evaluate(**keys, quiet=True), written)
    assert_same({**files_of(run / "records"), **files_of(tmp_path / "fresh")}, two)
    for kind, number in FORWARDED.items():
        assert facts[0][kind] + facts[1][kind] == number
    assert FORWARDED["prompts"] == 3 * 5
    records = [record for file in files_of(run / "records").values() for record in file.values()]
    assert FORWARDED["tokens"] > sum(record.get("n", 0) for record in records if "logps" in record)  # and gradients
    kept = Counter(map(tuple, facts[0]["kept"])) + Counter(map(tuple, facts[1]["kept"]))
    assert set(kept.values()) == {1}
    assert kept == Counter(map(tuple, KEPT))
    assert abs(len(facts[0]["kept"]) - len(facts[1]["kept"])) <= 3 * 6  # at most one record a probe and role


@pytest.mark.processes
def test_rows_measured_by_two_killed_processes_are_not_measured_again_by_one(
    keys: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = work(tmp_path, "kill")
    assert [done.returncode for done in killed] == [-signal.SIGKILL] * 2
    assert not (Path(keys["run"]) / "results.json").exists()
    partial = sorted(path.name.split(".", 1)[1] for path in tmp_path.rglob("*.partial"))
    assert partial == ["jsonl.1.partial", "jsonl.partial"]
    before = kept_in(tmp_path)
    assert {rank for rank, _ in before} == {"", "1"}
    (whole,) = (tmp_path / "cache").rglob("*.jsonl")
    counts = Counter([key for _, key in before] + [(whole.name, *record.key) for record in load_records(whole)])
    assert set(counts.values()) == {1}
    assert len(counts) >= 12  # six of each process at least

    with counting(monkeypatch):
        assert evaluate(**keys, quiet=True)["suites"]["many"]["metrics"]["probability"]["n"] == 5
    assert not list(tmp_path.rglob("*partial"))
    after = Counter(map(tuple, KEPT))
    assert set(after.values()) == {1}
    assert not after.keys() & counts.keys()
    assert len(after) + len(counts) == RECORDS


@pytest.mark.processes
def test_a_process_that_fails_ends_both_with_its_message(keys: dict[str, Any], tmp_path: Path) -> None:
    failed = work(tmp_path, "fail")
    assert all(done.returncode != 0 for done in failed)
    # First process 1 had other rows: all processes say so, none hangs.
    for rank, done in enumerate(failed):
        assert f"process {rank} says: processes 1 would measure other rows or another model" in done.stdout
    assert "no space left for records of process 1" in failed[1].stderr
    assert not (Path(keys["run"]) / "results.json").exists()


@pytest.mark.processes
def test_the_command_in_several_processes_prints_one_table(keys: dict[str, Any], tmp_path: Path) -> None:
    words = ("evaluate", keys["run"], "--suite", str(tmp_path / "suite.yaml"), "--batch_size", "2")
    both = forked_world(2, lambda _: llm_forget(*words)())
    assert [done.returncode for done in both] == [0, 0], both[0].stderr[-3000:]
    assert [done.stdout.count("forget_quality") for done in both] == [1, 0]
    results = json.loads((Path(keys["run"]) / "results.json").read_text())
    assert results["suites"]["suite"]["metrics"]["forget_probability"]["n"] == 5


def test_keys_are_dealt_out_once_longest_first() -> None:
    lengths = {(f"r{i}", 0): length for i, length in enumerate([3, 50, 7, 7, 40, 1, 9])}
    shares = divide(lengths, 3)
    assert shares == [[("r1", 0), ("r2", 0), ("r5", 0)], [("r4", 0), ("r3", 0)], [("r6", 0), ("r0", 0)]]
    assert sorted(key for share in shares for key in share) == sorted(lengths)
    assert divide(lengths, 1) == [sorted(lengths, key=lengths.__getitem__, reverse=True)]
    assert divide({("a", 0): 1}, 3) == [[("a", 0)], [], []]


def test_partial_record_files_of_any_number_of_processes_are_resumed(tmp_path: Path) -> None:
    path, keys = tmp_path / "text.jsonl", [(f"r{i}", 0) for i in range(5)]
    made = [GenerationRecord(*key, text="said", n=1) for key in keys]
    for rank in range(3):
        writer = RecordWriter(path, "generate", "k", keys, rank=rank)
        writer.restrict_to([keys[rank]])
        assert writer.missing() == {keys[rank]}
        writer.append([made[rank]])
    with open(path.with_name("text.jsonl.2.partial"), "a") as file:
        file.write('{"id": "r3", "sample": 0, "te')  # torn by the kill
    with open(path.with_name("text.jsonl.1.partial"), "a") as file:
        file.write('{"id": "r4", "sample": 0, "text": "said", "n": 1}\n')

    # Each process continues in its own file, and no file is lost before the complete file exists.
    again = [RecordWriter(path, "generate", "k", keys, rank=rank) for rank in range(2)]
    assert [writer.missing() for writer in again] == [{keys[3]}] * 2
    again[1].append([made[3]])
    again[0].add(again[1].measured())
    assert len(list(tmp_path.glob("*.partial"))) == 3
    assert [record.key for record in again[0].finish()] == keys
    assert [file.name for file in tmp_path.iterdir()] == ["text.jsonl"]
    assert [record.key for record in load_records(path, "k") or []] == keys


def test_a_suite_with_tasks_of_lm_eval_is_named_and_refused_in_several_processes() -> None:
    task = {"task": "wmdp_bio", "metric": "acc", "goal": "lower"}
    suite = parse_suite({"lm_eval": {"bio": task}}, name="hazards")
    _refuse_tasks({"hazards": suite}, 1)
    with pytest.raises(ValueError, match=r"'hazards' has lm-eval tasks \(wmdp_bio\), which run in one process, not 2"):
        _refuse_tasks({"hazards": suite}, 2)


def test_a_launch_that_shards_models_is_refused() -> None:
    refuse_sharded_models({"ACCELERATE_USE_FSDP": "false"})
    with pytest.raises(ValueError, match="a whole model in every process, but the launch requests FSDP; use"):
        refuse_sharded_models({"ACCELERATE_USE_FSDP": "true"})
