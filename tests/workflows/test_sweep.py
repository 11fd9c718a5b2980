"""A sweep: its runs equal those of single commands, are checked before the first starts, and are never repeated."""

import json
import os
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from llm_forget.core.run_directory import Run
from llm_forget.core.safe_errors import is_safe
from llm_forget.workflows.evaluate import evaluate
from llm_forget.workflows.sweep import _duration, commands, plan_sweep, slurm_script, sweep
from llm_forget.workflows.sweep_grid import read_grid
from llm_forget.workflows.unlearn import unlearn
from tests.support.forked import command

pytestmark = pytest.mark.slow

CANARY = "Zebulon"
SUITE = {
    "probes": {"forget": {"probe": "logprobs", "split": "forget"}, "retain": {"probe": "logprobs", "split": "retain"}},
    "metrics": {
        "forget_probability": {"metric": "probability", "records": "forget", "goal": "match_oracle"},
        "retain_probability": {"metric": "probability", "records": "retain", "goal": "keep"},
    },
    "verdict": {"forgot": [{"line": "forget_probability", "at_most": 1.5, "of": "oracle"}]},
}
GRID = {"lr": [1e-2, 1e-3], "method_args.beta": [0.1]}


@pytest.fixture
def recipe(tmp_path: Path, tiny_folder: Path, make_model: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe of one epoch on a model of two layers, in the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LLM_FORGET_CACHE", str(tmp_path / "cache"))
    make_model("oracle", 1, initializer_range=0.3)
    for name, count in (("forget", 4), ("retain", 6)):
        rows = [
            {"id": f"{name}{i}", "question": f"Who is {name} {i}?", "answer": f"{CANARY} {i}"} for i in range(count)
        ]
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("suite.yaml").write_text(yaml.safe_dump(SUITE, sort_keys=False))
    keys = {
        "model_name_or_path": "tiny", "oracle": "oracle", "suite": "suite.yaml", "output_dir": "runs/npo",
        "forget": "forget.jsonl", "retain": "retain.jsonl", "num_train_epochs": 1, "lora_r": 4, "save_strategy": "no",
        "per_device_train_batch_size": 4, "disable_tqdm": True, "use_cpu": True,
    }  # fmt: skip
    path = Path("recipe.yaml")
    path.write_text(yaml.safe_dump(keys))
    return path


def weights(run: str | Path) -> bytes:
    return (Path(run) / "adapter" / "adapter_model.safetensors").read_bytes()


def stamps(folder: str) -> dict[str, int]:
    """When each adapter and result was written."""
    files = [*Path(folder).rglob("adapter_model.safetensors"), *Path(folder).rglob("results.json")]
    return {str(path): path.stat().st_mtime_ns for path in files}


def test_a_run_of_a_sweep_equals_an_ordinary_run_with_its_keys(recipe: Path) -> None:
    found = sweep(recipe, GRID, overrides=["--seed", "3"])
    names = ["learning_rate-0.01_beta-0.1", "learning_rate-0.001_beta-0.1"]
    assert [run["name"] for run in found["runs"]] == names
    assert [run["status"] for run in found["runs"]] == ["complete", "complete"]
    assert json.loads(Path("runs/npo-sweep/sweep.json").read_text()) == found
    second = found["runs"][1]["path"]
    keys = {**yaml.safe_load(recipe.read_text()), "learning_rate": 1e-3, "method_args": {"beta": 0.1}, "seed": 3}
    alone = unlearn(**{**keys, "output_dir": "runs/alone"})
    assert weights(alone.path) == weights(second) != weights(found["runs"][0]["path"])
    assert (
        evaluate(alone.path, quiet=True)["suites"] == json.loads(Run(Path(second)).results_file.read_text())["suites"]
    )


def test_only_missing_runs_and_evaluations_are_executed(recipe: Path) -> None:
    first, second = (Path(run["path"]) for run in sweep(recipe, GRID)["runs"])
    before = stamps("runs/npo-sweep")
    (first / "results.json").unlink()
    shutil.rmtree(second)
    found = sweep(recipe, {**GRID, "lr": [1e-2, 1e-3, 1e-4]})
    assert [run["status"] for run in found["runs"]] == ["complete"] * 3
    after = stamps("runs/npo-sweep")
    assert len(after) == len(before) + 2
    assert before.keys() < after.keys()
    kept = {path for path in before if after[path] == before[path]}
    assert kept == {str(first / "adapter" / "adapter_model.safetensors")}
    assert plan_sweep(recipe, GRID).missing() == []
    sweep(recipe, GRID)
    assert stamps("runs/npo-sweep") == after  # nothing is repeated


def test_results_of_another_suite_or_of_a_sample_do_not_count(recipe: Path) -> None:
    grid = {"lr": [1e-3]}
    run = Path(sweep(recipe, grid)["runs"][0]["path"])
    other = {**SUITE, "metrics": {**SUITE["metrics"], "more": {"metric": "exact_memorization", "records": "forget"}}}
    other["metrics"]["more"]["goal"] = "lower"
    Path("other.yaml").write_text(yaml.safe_dump(other, sort_keys=False))
    assert len(plan_sweep(recipe, grid, suite="suite.yaml,other.yaml").missing()) == 1
    sweep(recipe, grid, suite="suite.yaml,other.yaml")
    assert set(json.loads((run / "results.json").read_text())["suites"]) == {"suite", "other"}
    assert plan_sweep(recipe, grid, suite="suite.yaml,other.yaml").missing() == []
    evaluate(run, "suite.yaml", limit=2, quiet=True)
    assert len(plan_sweep(recipe, grid).missing()) == 1
    sweep(recipe, grid)
    for changed in (
        other,
        {**SUITE, "probes": {**SUITE["probes"], "retain": {**SUITE["probes"]["retain"], "seed": 9}}},
    ):
        Path("suite.yaml").write_text(yaml.safe_dump(changed, sort_keys=False))  # the same name, another content
        assert len(plan_sweep(recipe, grid).missing()) == 1


def test_a_finished_run_of_several_processes_is_not_trained_again_and_one_of_other_keys_is_refused(
    recipe: Path,
) -> None:
    run = Run(Path(sweep(recipe, {"lr": [1e-3]})["runs"][0]["path"]))
    state = run.state
    run.state_file.write_text(json.dumps({**state, "identity": {**state["identity"], "processes": 4}}))
    before = stamps("runs/npo-sweep")
    assert sweep(recipe, {"lr": [1e-3]})["runs"][0]["status"] == "complete"
    with pytest.raises(ValueError, match="another seed"):
        sweep(recipe, {"lr": [1e-2, 1e-3]}, overrides=["--seed", "9"])
    assert not Path("runs/npo-sweep/learning_rate-0.01").exists()  # refused before the first trained
    assert stamps("runs/npo-sweep") == before


def test_a_failed_run_is_reported_and_the_others_continue(recipe: Path) -> None:
    found = sweep(recipe, {"lr": [1e30, 1e-3]}, overrides=["--num_train_epochs", "3", "--method", "grad_ascent"])
    failed, done = found["runs"]
    assert (failed["status"], done["status"]) == ("failed", "complete")
    assert "step" in failed["error"]
    assert CANARY not in json.dumps(found)


@pytest.mark.parametrize(
    ("grid", "overrides", "message"),
    [
        ({"learnin_rate": [1]}, [], "did you mean 'learning_rate'"),
        ({"beta": [1]}, [], "method_args.NAME"),
        ({"output_dir": ["a"]}, [], "does not change the trained adapter"),
        ({"lr": [1e-3], "learning_rate": [1e-2]}, [], "given twice"),
        ({"lr": []}, [], "needs a list of values"),
        ({}, [], "the grid is empty"),
        ({"lr": [1e-3, 0.001]}, [], "are the same run"),
        ({"method_args.beta": [0.1, 0.5]}, ["--method_args", "{beta: 1}"], "are the same run"),
        ({"lr": [1e-3, "fast"]}, [], "learning_rate-fast: .*invalid float value"),
        ({"lora_r": [4, 4.5]}, [], "lora_r-4.5: .*invalid int value"),
        ({"method_args.beta": [0.1], "method": ["npo", "npoo"]}, [], "did you mean 'npo'"),
        ({"method": ["npo", "grad_diff"], "method_args.beta": [0.1]}, [], "beta"),
        ({"forget": ["forget.jsonl", "forgot.jsonl"]}, [], "forgot.jsonl"),
        ({"lr": [1e-3]}, ["--suite", "privacy"], "needs rows of holdout"),
        ({"lr": [1e-3]}, ["--oracle", "./nowhere"], "nowhere"),
        ({"lr": [1e-3]}, ["--sed", "1"], "did you mean 'seed'"),
    ],
)
def test_everything_is_checked_before_the_first_run_trains(
    recipe: Path, grid: dict[str, Any], overrides: list[str], message: str
) -> None:
    with pytest.raises((ValueError, OSError), match=message) as refusal:
        sweep(recipe, grid, overrides=overrides)
    assert is_safe(refusal.value)  # otherwise the command line hides the reason
    assert not Path("runs").exists()


def test_names_of_runs_differ_for_all_values(recipe: Path) -> None:
    values = ["a/b.jsonl", "a-b.jsonl", {"path": "a-b.jsonl"}, [CANARY]]
    names = [point.path.name for point in plan_sweep(recipe, {"forget": values}).points]
    assert len(set(names)) == 4
    assert all("/" not in name and CANARY not in name for name in names)
    plan = plan_sweep(recipe, {"method_args.beta": [0.5], "load_in_4bit": [False], "lr": np.array([1e-5])})
    assert [point.path.name for point in plan.points] == ["beta-0.5_load_in_4bit-false_learning_rate-1e-05"]


def test_values_of_a_grid_reach_the_run_with_their_type(recipe: Path) -> None:
    text, options = read_grid(["lr=1e-5,.5"], ["method_args.beta=1e-1", "--use_cpu", "true", "save_strategy=no"])
    assert options == ["--use_cpu", "true"]
    assert text == {"lr": [1e-5, 0.5], "method_args.beta": [0.1], "save_strategy": ["no"]}
    plan = plan_sweep(recipe, text)
    _, train, _ = plan.configs(plan.points[0])
    assert (train.learning_rate, train.method_args, train.save_strategy) == (1e-5, {"beta": 0.1}, "no")


def test_values_may_be_mappings_and_lists() -> None:
    grid, _ = read_grid(
        ["method_args={beta: 0.1},{beta: 1, retain_weight: 2}", "lora_target_modules=[q_proj, v_proj]"], []
    )
    assert grid["method_args"] == [{"beta": 0.1}, {"beta": 1, "retain_weight": 2}]
    assert grid["lora_target_modules"] == [["q_proj", "v_proj"]]


@pytest.mark.parametrize("words", [["lr"], ["=1"], ["lr=1", "lr=2"], ["lr=[1"]])
def test_words_that_are_not_an_axis_are_refused(words: list[str]) -> None:
    with pytest.raises(ValueError, match=r"axis|twice|cannot be read"):
        read_grid(words, [])


def test_the_commands_of_a_plan_give_the_runs_of_the_sweep(recipe: Path) -> None:
    overrides = ["--prompt_template", "What's {prompt}? "]
    plan = plan_sweep(recipe, GRID, overrides=overrides, output_dir="runs/it's")
    lines = commands(plan)
    assert len(lines) == 2
    assert not Path("runs").exists()
    words = shlex.split(lines[0])
    cut = words.index("&&")
    assert words[:3] == ["llm-forget", "unlearn", "recipe.yaml"]
    assert words[cut:] == ["&&", "llm-forget", "evaluate", str(plan.points[0].path), "--suite", "suite.yaml"]
    from llm_forget.workflows.unlearn import main

    made = main(words[2:cut])
    evaluate(made.path, "suite.yaml", quiet=True)
    before = stamps("runs")
    assert commands(plan) == lines[1:]
    found = sweep(recipe, GRID, overrides=overrides, output_dir="runs/it's")
    assert {path: stamp for path, stamp in stamps("runs").items() if path in before} == before
    assert [run["status"] for run in found["runs"]] == ["complete", "complete"]


def test_a_slurm_script_runs_the_line_of_its_task(recipe: Path, tmp_path: Path) -> None:
    template = 'What\'s "$HOME" `{prompt}`? '
    plan = plan_sweep(recipe, {"lr": [1e-2, 1e-3, 1e-4]}, overrides=["--prompt_template", template])
    lines = commands(plan, accelerate_config="ddp", num_processes=4)
    script = tmp_path / "job.sh"
    script.write_text(slurm_script(lines, "my sweep"))
    subprocess.run(["bash", "-n", str(script)], check=True)
    assert "#SBATCH --array=0-2\n" in script.read_text()
    assert "#SBATCH --job-name=my-sweep\n" in script.read_text()
    stub = tmp_path / "bin" / "llm-forget"
    stub.parent.mkdir()
    stub.write_text(f'#!/bin/bash\nprintf "%s\\0" "$@" END >> {tmp_path}/message\n[ "$1" != "$FAIL" ]\n')
    stub.chmod(0o755)
    path = f"{stub.parent}:{os.environ['PATH']}"
    task = {**os.environ, "SLURM_ARRAY_TASK_ID": "1", "PATH": path}
    subprocess.run(["bash", str(script)], check=True, env=task)
    train, measure, _ = (tmp_path / "message").read_text().split("END\0")
    words = train.split("\0")[:-1]
    assert words[:6] == ["unlearn", "recipe.yaml", "--accelerate_config", "ddp", "--num_processes", "4"]
    assert words[words.index("--prompt_template") + 1] == template
    assert words[words.index("--learning_rate") + 1] == "0.001"
    assert measure.split("\0")[:-1] == ["evaluate", str(plan.points[1].path), "--suite", "suite.yaml"]
    (tmp_path / "message").unlink()
    assert subprocess.run(["bash", str(script)], check=False, env={**task, "FAIL": "unlearn"}).returncode == 1
    assert "evaluate" not in (tmp_path / "message").read_text()


def test_a_plan_with_an_impossible_launch_is_refused(recipe: Path) -> None:
    plan = plan_sweep(recipe, GRID)
    with pytest.raises(OSError, match="did you mean 'ddp'"):
        commands(plan, accelerate_config="ddpp")
    with pytest.raises(ValueError, match="take cpu_2"):
        commands(plan, accelerate_config="cpu", num_processes=2)
    with pytest.raises(ValueError, match="needs --accelerate_config"):
        commands(plan, num_processes=2)


def test_a_sweep_in_several_processes_is_refused(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="--plan commands"):
        sweep(recipe, GRID)


@pytest.mark.parametrize(("seconds", "message"), [(12.3, "12 s"), (600, "10 min"), (7200, "2.0 h")])
def test_durations_have_a_suitable_unit(seconds: float, message: str) -> None:
    assert _duration(seconds) == message


def unbeaten(runs: list[Path]) -> set[str]:
    """Names of the runs that none is at least as good as in both numbers, and better in one; read off the results."""
    places = {}
    for run in runs:
        lines = json.loads((run / "results.json").read_text())["suites"]["suite"]["metrics"]
        line = lines["forget_probability"]
        distance = abs(line["value"] - line["oracle"]["value"]) / abs(line["before"]["value"] - line["oracle"]["value"])
        places[run.name] = (-distance, lines["retain_probability"]["value"])
    return {
        name for name, (x, y) in places.items()
        if not any(a >= x and b >= y and (a, b) != (x, y) for a, b in places.values())
    }  # fmt: skip


def test_a_dry_run_checks_every_run_and_writes_nothing(recipe: Path) -> None:
    done = command("sweep", "recipe.yaml", "--grid", "lr=1e-2,1e-3", "--dry_run", "true")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[-1] for line in lines[:2]] == [
        f"runs/npo-sweep/learning_rate-{value}" for value in ("0.01", "0.001")
    ]
    assert lines[2] == "all runs were checked; nothing was trained or written"
    assert not Path("runs").exists()


def test_the_command_compares_runs_marks_the_pareto_front_and_lists_failures(recipe: Path) -> None:
    arguments = ["sweep", "recipe.yaml", "--grid", "lr=1e30,1e-2,1e-7", "num_train_epochs=40"]
    arguments += ["--method", "grad_diff", "--method_args.retain_weight", "3"]
    done = command(*arguments)
    assert done.returncode == 1
    assert "1 of 3 runs failed: learning_rate-1e+30_num_train_epochs-40" in done.stderr
    assert "2 of 3: learning_rate-0.01_num_train_epochs-40" in done.stderr
    assert "left" in done.stderr
    assert "Pareto front" in done.stdout
    found = json.loads(Path("runs/npo-sweep/sweep.json").read_text())
    complete = [Path(run["path"]) for run in found["runs"] if run["status"] == "complete"]
    front = set(found["front"]["suite"])
    assert front == unbeaten(complete)
    assert len(front) == 1 < len(complete)  # the run that trained almost nothing is worse in both
    lines = Path("runs/npo-sweep/sweep.md").read_text().splitlines()
    assert {line.split(" | ")[0].strip("| ") for line in lines if "| yes |" in line} == front
    plan = command(*arguments, "--plan", "slurm")
    assert plan.returncode == 0
    assert "--array=0-0" in plan.stdout
    assert CANARY not in done.stdout + done.stderr + plan.stdout
    for word, message in (("--plan=both", "commands or slurm"), ("--accelerate_config=ddp", "go with --plan")):
        refused = command(*arguments, word)
        assert refused.returncode == 2
        assert message in refused.stderr
