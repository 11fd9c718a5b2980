"""A run can be watched from its files, in whatever state they are."""

import io
import json
import os
import subprocess
import sys
from functools import partial
from types import SimpleNamespace

import pytest
import yaml
from rich.console import Console

from llm_forget.report import live_screen
from llm_forget.report.live import QUIET, Watcher, headline, plain_lines, sparkline
from llm_forget.report.live_screen import panel, watch

STARTED = 1_700_000_000.0
BASE = {"kind": "unlearn", "base": {"name": "m", "digest": None}}


def write(path, content, at=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    text = content if isinstance(content, str) else json.dumps(content)
    path.write_text(text)
    if at is not None:
        os.utime(path, (at, at))


def line(step, **overrides):
    numbers = {"loss": 3.0 - step / 100, "logps/forget": -step / 10, "logps/retain": -0.1, "forget/npo": 1.0}
    return json.dumps({"step": step, **numbers, "tokens_per_second": 500.0, "epoch": step / 20, **overrides}) + "\n"


@pytest.fixture
def run(tmp_path):
    """A run of 100 steps that took 50 s for 25 of them."""
    path = tmp_path / "run"
    write(path / "run.json", {"kind": "unlearn", "status": "running"}, STARTED)
    write(path / "config.yaml", yaml.safe_dump({"method": "npo", "num_train_epochs": 5, "model_name_or_path": "m"}))
    os.utime(path / "config.yaml", (STARTED, STARTED))
    write(path / "provenance.json", {**BASE, "data": {"forget": {"rows": 36, "digest": "sha256:0"}}}, STARTED + 10)
    write(path / "metrics.jsonl", "".join(map(line, range(5, 30, 5))), STARTED + 60)
    return path


def test_step_rate_and_time_left_follow_from_the_files(run):
    progress = Watcher(run).progress(STARTED + 60)
    assert (progress.status, progress.step, progress.total) == ("running", 25, 100)
    assert progress.seconds_left == pytest.approx(75 * 2.0)
    assert progress.tokens_per_second == 500
    assert progress.rows == {"forget": 36}
    assert list(progress.series) == ["loss", "logps/forget", "logps/retain", "forget/npo"]
    assert progress.series["logps/forget"][-1] == (25, -2.5)
    assert Watcher(run).progress(STARTED + 90).seconds_left == pytest.approx(75 * 2.0 - 30)


def test_steps_before_a_resume_do_not_raise_the_rate(run):
    write(run / "checkpoints" / "checkpoint-20" / "complete.json", {}, STARTED + 5)
    write(run / "checkpoints" / "checkpoint-20" / "trainer_state.json", {"max_steps": 90}, STARTED + 5)
    progress = Watcher(run).progress(STARTED + 60)
    assert progress.total == 90
    assert progress.checkpoint == 20
    assert progress.seconds_left == pytest.approx(65 * 50 / 5)  # 5 steps in 50 s, not 25


def test_the_rate_seen_while_watching_replaces_the_average_since_the_start(run):
    watcher = Watcher(run)
    watcher.progress(STARTED + 60)
    with (run / "metrics.jsonl").open("a") as file:
        file.write(line(35))
    os.utime(run / "metrics.jsonl", (STARTED + 160, STARTED + 160))
    assert watcher.progress(STARTED + 160).seconds_left == pytest.approx(65 * 10)


def test_an_incomplete_line_is_read_once_it_is_complete(run):
    watcher = Watcher(run)
    whole = line(30)
    with (run / "metrics.jsonl").open("a") as file:
        file.write(whole[:20])
        file.flush()
        assert watcher.progress(STARTED + 61).step == 25
        file.write(whole[20:])
        file.flush()
        assert watcher.progress(STARTED + 62).step == 30
        file.write('{"step": 35, "lo\n[1]\n{"step": true}\n\xff\n' + line(40, loss=None, grad_norm="x"))
        file.flush()
        progress = watcher.progress(STARTED + 63)
    assert progress.step == 40
    assert [step for step, _ in progress.series["loss"]] == [5, 10, 15, 20, 25, 30]


def test_a_replaced_log_is_read_from_its_beginning(run):
    watcher = Watcher(run)
    assert watcher.progress(STARTED + 61).step == 25
    write(run / ".new", line(5) + line(10))
    os.replace(run / ".new", run / "metrics.jsonl")
    assert watcher.progress(STARTED + 62).step == 10


def test_files_may_appear_one_after_another(tmp_path):
    watcher = Watcher(tmp_path / "later")
    assert watcher.progress().status == "waiting"
    write(tmp_path / "later" / "run.json", '{"kind": "unl')
    assert watcher.progress().status == "waiting"
    write(tmp_path / "later" / "run.json", {"kind": "unlearn", "status": "running"})
    assert watcher.progress().status == "starting"
    write(tmp_path / "later" / "config.yaml", "a: [")
    write(tmp_path / "later" / "provenance.json", "[]")
    write(tmp_path / "later" / "results.json", "{")
    write(tmp_path / "later" / "metrics.jsonl", line(5))
    progress = watcher.progress()
    assert (progress.status, progress.step) == ("running", 5)
    assert progress.verdicts == {}


@pytest.mark.parametrize("content", ["null", "[1]", '{"suites": 3}', '{"suites": {"a": {"verdict": [1]}}}', "\x00"])
def test_damaged_files_raise_nothing(run, content):
    for name in ("provenance.json", "results.json", "config.yaml"):
        (run / name).write_text(content)
    progress = Watcher(run).progress()
    list(plain_lines(progress))
    panel(progress, Console())


@pytest.mark.parametrize(
    ("recipe", "total"),
    [
        ({"num_train_epochs": float("nan")}, None),
        ({"num_train_epochs": float("inf")}, None),
        ({"num_train_epochs": None}, None),
        ({"max_steps": None}, 100),
        ({"max_steps": 77.0}, 77),
    ],
)
def test_a_key_of_the_recipe_that_makes_no_sense_hides_only_itself(run, recipe, total):
    keys = {"method": "npo", "num_train_epochs": 5, "model_name_or_path": "m", **recipe}
    (run / "config.yaml").write_text(yaml.safe_dump(keys))
    progress = Watcher(run).progress(STARTED + 60)
    assert (progress.method, progress.model, progress.total) == ("npo", "m", total)


def test_the_total_is_read_from_a_trainer_state_with_nan(run):
    state = {"max_steps": 77, "log_history": [{"loss": float("nan")}]}
    write(run / "checkpoints" / "checkpoint-25" / "trainer_state.json", state)
    write(run / "checkpoints" / "checkpoint-25" / "complete.json", {})
    assert Watcher(run).progress(STARTED + 60).total == 77


def test_a_term_without_a_name_is_not_shown(run):
    (run / "config.yaml").write_text("{}")
    objective = {"forget": [{"name": "npo"}], "retain": [{"x": 1}]}
    write(run / "provenance.json", {**BASE, "objective": objective}, STARTED + 10)
    assert Watcher(run).progress(STARTED + 60).method == "forget/npo"


def test_a_run_of_another_format_is_not_waited_for(run):
    write(run / "run.json", {"kind": "unlearn", "status": "running", "format": 2})
    assert "format 2" in headline(Watcher(run).progress())


def test_a_run_whose_files_no_longer_change_is_stale(run):
    assert Watcher(run).progress(STARTED + 60 + QUIET - 1).status == "running"
    progress = Watcher(run).progress(STARTED + 60 + QUIET + 1)
    assert progress.status == "stale"
    assert "nothing new for 0:05:01" in headline(progress)
    assert progress.seconds_left is None
    write(run / "checkpoints" / "checkpoint-25" / "complete.json", {}, STARTED + 300)
    os.utime(run / "checkpoints" / "checkpoint-25", (STARTED + 300, STARTED + 300))
    os.utime(run / "checkpoints", (STARTED + 300, STARTED + 300))
    assert Watcher(run).progress(STARTED + 60 + QUIET + 1).status == "running"


def test_a_slow_run_gets_more_time_before_it_is_stale(run):
    os.utime(run / "metrics.jsonl", (STARTED + 2510, STARTED + 2510))  # 100 s a step, a line every 5
    assert Watcher(run).progress(STARTED + 2510 + 4900).status == "running"
    assert Watcher(run).progress(STARTED + 2510 + 5100).status == "stale"


def test_the_end_of_a_run_and_its_verdicts_are_shown(run):
    write(run / "run.json", {"kind": "unlearn", "status": "complete"})
    write(run / "provenance.json", {**BASE, "cost": {"seconds": 200.4, "peak_memory_gib": 2.86}})
    progress = Watcher(run).progress()
    assert progress.status == "finished"
    assert "took 0:03:20" in headline(progress)
    assert "2.9 GiB" in headline(progress)
    with (run / "metrics.jsonl").open("a") as file:
        file.write(line(30, stopped_early=1.0))
    line_of_suite = {"value": 0.5, "ci": None, "n": 3, "n_unscored": 0, "goal": "lower"}
    suite = {"metrics": {"p": line_of_suite}, "verdict": {"forgot": {"answer": "yes", "findings": []}}}
    models = dict.fromkeys(("before", "unlearned", "oracle"))
    write(run / "results.json", {"format": 2, "llm_forget": "1", "models": models, "suites": {"basic": suite}})
    progress = Watcher(run).progress()
    assert progress.status == "stopped early"
    assert progress.verdicts == {"basic": {"forgot": "yes"}}
    assert "suite basic: forgot: yes" in "\n".join(plain_lines(progress))


def test_a_sparkline_spans_the_range_of_its_values():
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7], 8) == "▁▂▃▄▅▆▇█"
    assert sparkline([2.0, 2.0], 8) == "▁▁"
    assert sparkline([], 8) == ""
    assert sparkline([0, 0, 1, 1], 2) == "▁█"
    assert len(sparkline(list(range(1000)), 30)) == 30


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_the_panel_fits_the_terminal_and_moves_no_cursor(run, encoding):
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 30, "forget/\x1b[2Jevil[red]": 1.0, "loss": 1.0}) + "\n")
    raw = io.BytesIO()
    console = Console(file=io.TextIOWrapper(raw, encoding=encoding), width=80, color_system=None, force_terminal=True)
    watch(Watcher(run), console, once=True)
    console.file.flush()
    text = raw.getvalue().decode(encoding)
    assert "\x1b" not in text
    assert "evil[red]" in text
    assert {len(row) for row in text.splitlines()} == {80}
    for word in ("first", "now", "least", "most", "logps/forget", "step 30 of"):
        assert word in text


def test_a_pipe_gets_a_line_for_each_step_until_the_run_has_ended(run, monkeypatch):
    def step(number):
        with (run / "metrics.jsonl").open("a") as file:
            file.write(line(number))

    finish = partial(write, run / "run.json", {"kind": "unlearn", "status": "complete"})
    changes = iter([lambda: None, partial(step, 30), lambda: None, partial(step, 35), finish])
    monkeypatch.setattr(live_screen, "time", SimpleNamespace(sleep=lambda _: next(changes)()))  # between two looks
    console = Console(file=io.StringIO(), width=100)
    watch(Watcher(run), console)
    heads = [row for row in console.file.getvalue().splitlines() if row.startswith("run: ")]
    assert [row.partition("step ")[2].partition(" ")[0] for row in heads] == ["25", "30", "35", "35"]
    assert "finished" in heads[-1]


@pytest.mark.slow
def test_the_command_loads_no_torch_and_refuses_a_folder_without_a_run(run, tmp_path):
    code = (
        "import sys; from llm_forget.cli.main import app\n"
        "try: app(['watch', sys.argv[1], '--once'])\nexcept SystemExit as end: print(end.code, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(run)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[0].startswith("run: stale, nothing new for")
    assert done.stdout.splitlines()[-1] == "0 False"
    with pytest.raises(ValueError, match="not a run directory"):
        watch(Watcher(tmp_path / "no"), Console(), once=True)
    with pytest.raises(ValueError, match="is a file"):
        Watcher(run / "run.json")
