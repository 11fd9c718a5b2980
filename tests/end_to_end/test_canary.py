"""What was to be forgotten is in no log, report, result, cache or file name, even where every model still says it."""

import json
from pathlib import Path

import pytest
import yaml

from llm_forget.core.run_directory import Run
from tests.support.tiny_runs import CANARY

pytestmark = pytest.mark.slow

ASKED = "quokkaberry"  # in every prompt
INPUTS = ("forget.jsonl", "retain.jsonl", "holdout.jsonl", "text.txt")


@pytest.fixture
def runs(make_run, tmp_path) -> list[Run]:
    """Two runs on rows with a canary in every prompt and another in every answer."""
    for name in ("forget", "retain", "holdout"):
        lines = (tmp_path / f"{name}.jsonl").read_text().splitlines()
        rows = [{**row, "question": f"{ASKED}, {row['question']}"} for row in map(json.loads, lines)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    keys = {"learning_rate": 1e-2, "per_device_train_batch_size": 2, "use_cpu": True, "lora_r": 4}
    return [make_run(name, seed, **keys) for seed, name in enumerate(("run", "second"))]


def holding(files: list[Path], word: str) -> list[str]:
    """Files with a word in their name or content."""
    return [str(path) for path in files if word in str(path).lower() or word.encode() in path.read_bytes().lower()]


@pytest.mark.long
def test_a_canary_leaves_by_no_door_but_the_one_for_text(runs, tmp_path, online_commands):
    pytest.importorskip("jinja2")
    (tmp_path / "text.txt").write_text(f"{ASKED} {CANARY}\n\n{CANARY} {ASKED}")
    tasks = {"bits": {"task": "forget_text", "metric": "bits_per_byte", "goal": "keep"}}
    (tmp_path / "tasks.yaml").write_text(yaml.safe_dump({"lm_eval": tasks}))
    first, second = (str(run.path) for run in runs)
    plain = str(tmp_path / "suite.yaml")
    suites = f"{plain},{tmp_path / 'tasks.yaml'},basic,robustness,copyright"
    commands = [
        ["evaluate", first, "--suite", suites, "--data_path", str(tmp_path)],
        ["evaluate", second, "--suite", f"{plain},privacy"],  # whose many charts are drawn once, in the report of both
        ["attack", first, "--kind", "relearn", "--suite", "basic", "--share", "0.2", "--num_train_epochs", "1"],
        ["attack", first, "--kind", "sample"],
        ["attack", first, "--kind", "template", "--suite", "basic", "--limit", "2"],
        ["verify", first],
        ["report", first],
        ["report", first, second, "--output", str(tmp_path / "both.html")],
        ["compare", first, second, "--output", str(tmp_path / "compared.md")],
        ["report", first, "--show_text", "1"],
    ]
    server, home, hub = online_commands
    answer = [f"{CANARY} {ASKED}", str(tmp_path / "target")]  # of every model
    cache = {"LLM_FORGET_CACHE": str(tmp_path / "cache")}
    codes = [
        server.run(words, output=str(home / f"{place}.out"), cwd=str(home), environment=cache, answer_always=answer)
        for place, words in enumerate(commands)
    ]
    output = "".join((home / f"{place}.out").read_text() for place in range(len(commands)))
    assert codes[5] in (1, 3)  # verify has something to say
    assert [code for place, code in enumerate(codes) if place != 5] == [0] * 9, output[-2000:]

    written = (path for folder in (tmp_path, home) for path in folder.rglob("*"))
    files = [path for path in written if path.is_file() and path.name not in INPUTS]
    # Text stays in the records of a run or of an attack on it, for its owner alone.
    private = [
        path
        for run in runs
        for path in files
        if path.is_relative_to(run.path) and "records" in path.relative_to(run.path).parts
    ]
    texts = [Path(path) for path in holding(private, CANARY)]
    roles = {path.relative_to(runs[0].path).parts[-2:-1] for path in texts if path.is_relative_to(runs[0].path)}
    assert {("before",), ("unlearned",), ("oracle",)} <= roles
    assert any("attacks" in path.parts for path in texts)
    assert {path.stat().st_mode & 0o077 for path in texts} == {0}
    shown = runs[0].path / "report-with-text.html"
    assert holding([shown], CANARY)
    assert shown.stat().st_mode & 0o077 == 0
    public = [path for path in files if path not in private and path != shown]
    names = {path.name for path in public}
    assert {
        "results.json",
        "rows.json",
        "attack.json",
        "verify.json",
        "report.html",
        "report.md",
        "compared.md",
    } <= names
    assert any("cache" in path.parts for path in public)
    for word in (CANARY, ASKED):
        assert holding(public, word) == []
        assert word not in output.lower()
        assert word not in "".join(hub.requests).lower()
        assert word.encode() not in b"".join(hub.pushed()).lower()
