"""Launches over several processes: what was asked for is what runs, or nothing runs."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors.torch import load_file

from llm_forget.core import resources
from llm_forget.core.launch import WORLD_SIZE, RequestedLaunch, check_launch, launch_command, requested_launches
from tests.support.forked import forked as in_fork, llm_forget
from tests.support.forked_launch import launched
from tests.support.repository import ROOT

CONFIGS = ["cpu", "cpu_2", "ddp", "fsdp2", "single_gpu", "zero2", "zero3"]
# One write per line: the lines of two processes must not run into each other.
WORKER = """
import sys
from accelerate import Accelerator
from llm_forget.core.launch import check_launch, follow_launcher
follow_launcher()
accelerator = Accelerator()
say = lambda text: (sys.stdout.write(text + "\\n"), sys.stdout.flush())
say(f"obtained {accelerator.num_processes} {accelerator.distributed_type.value}")
try:
    check_launch(accelerator.state)
    say("accepted")
except ValueError as error:
    say(f"refused: {error}")
"""


@pytest.fixture
def worker(tmp_path: Path) -> str:
    (tmp_path / "worker.py").write_text(WORKER)
    return str(tmp_path / "worker.py")


def run(*command: str, **environment: str) -> str:
    inherited = {k: v for k, v in os.environ.items() if k not in (WORLD_SIZE, "WORLD_SIZE", "RANK", "LOCAL_RANK")}
    done = subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        env={**inherited, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment},
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def forked(launcher: str, *words: object, **environment: str) -> str:
    done = launched(launcher, *words, environment={"OMP_NUM_THREADS": "1", **environment})
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def config(name: str) -> str:
    return str(resources.locate("accelerate_configs", name))


def test_all_configurations_are_shipped_and_accelerate_reads_them() -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    assert resources.names("accelerate_configs") == CONFIGS
    for name in CONFIGS:
        config = load_config_from_file(str(resources.locate("accelerate_configs", name)))
        assert config.num_processes >= 1
        assert config.mixed_precision == "no"  # belongs to the recipe


@pytest.mark.processes
def test_cpu_2_gives_two_processes(worker: str) -> None:
    out = run("-m", "accelerate.commands.launch", "--config_file", config("cpu_2"), worker)
    assert out.count("obtained 2 MULTI_CPU") == 2
    assert out.count("accepted") == 2


@pytest.mark.processes
def test_cpu_gives_one_process(worker: str) -> None:
    out = forked("accelerate.commands.launch", "--config_file", config("cpu"), worker)
    assert out.count("obtained 1 NO") == 1
    assert out.count("accepted") == 1


@pytest.mark.processes
def test_the_silent_single_process_of_accelerate_is_refused(worker: str) -> None:
    out = forked("accelerate.commands.launch", "--cpu", "--num_processes", "2", worker)
    assert "obtained 1 NO" in out
    assert "refused: accelerate launch requested 2 processes, but this run has 1" in out


@pytest.mark.processes
def test_fsdp_that_became_ddp_is_refused(worker: str, tmp_path: Path) -> None:
    text = resources.locate("accelerate_configs", "fsdp2").read_text().replace("use_cpu: false", "use_cpu: true")
    (tmp_path / "fsdp2_cpu.yaml").write_text(text)
    out = forked("accelerate.commands.launch", "--config_file", tmp_path / "fsdp2_cpu.yaml", worker)
    assert "obtained 2 MULTI_CPU" in out
    assert "refused: the launch requested FSDP, but accelerate runs MULTI_CPU here" in out
    assert "accepted" not in out


@pytest.mark.processes
def test_torchrun_on_cpus_that_trains_two_separate_models_is_refused(worker: str) -> None:
    out = forked("torch.distributed.run", "--nproc_per_node", "2", worker, CUDA_VISIBLE_DEVICES="")
    assert out.count("obtained 1 NO") == 2
    assert out.count("refused: the launcher (WORLD_SIZE) requested 2 processes") == 2


def becomes(words: list[str], folder: Path) -> list[str]:
    """LLM_FORGET_WORLD_SIZE, and the words after Python's name, of the process that a command becomes."""
    (folder / "python").write_text(f'#!/bin/sh\nprintf "%s\\n" "${WORLD_SIZE}" "$@"\n')
    (folder / "python").chmod(0o755)

    def command() -> None:
        sys.executable = str(folder / "python")
        llm_forget(*words)()

    done = in_fork(command)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.processes
@pytest.mark.slow
def test_both_ways_to_launch_train_one_adapter_over_two_processes(
    tmp_path: Path, tiny_folder: Path, libraries: None
) -> None:
    rows = [{"id": str(i), "question": f"Who is {i}?", "answer": f"{i} of {i}"} for i in range(8)]
    for split, part in (("forget", rows[:4]), ("retain", rows[4:])):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    keys = {"model_name_or_path": tiny_folder, "method": "npo", "max_steps": 2, "save_strategy": "no", "lora_r": 4}
    keys |= {split: tmp_path / f"{split}.jsonl" for split in ("forget", "retain")}
    keys |= {"per_device_train_batch_size": 2, "learning_rate": 0.01}

    def recipe(name: str) -> list[str]:
        words = [word for key, value in keys.items() for word in (f"--{key}", str(value))]
        return ["unlearn", *words, "--output_dir", str(tmp_path / name)]

    launcher = ["-m", "accelerate.commands.launch", "--config_file", config("cpu_2")]
    world_size, *ours = becomes([*recipe("ours"), "--accelerate_config", "cpu_2"], tmp_path)
    assert (world_size, ours) == ("2", [*launcher, "--num_processes", "2", "-m", "llm_forget", *recipe("ours")])
    theirs = [*launcher, "-m", "llm_forget", *recipe("theirs")]
    for command, variables in ((ours, {WORLD_SIZE: world_size}), (theirs, {})):
        forked(*command[1:], LLM_FORGET_CACHE=f"{command[-1]}-cache", **variables)
    for name in ("ours", "theirs"):
        facts = json.loads((tmp_path / name / "provenance.json").read_text())
        assert (facts["processes"], facts["wrapper"]) == (2, "DistributedDataParallel")
    files = [tmp_path / name / "adapter" / "adapter_model.safetensors" for name in ("ours", "theirs")]
    assert all(tensor.any() for tensor in load_file(files[0]).values()), "a lora_B begins as zeros"
    assert files[0].read_bytes() == files[1].read_bytes()


def state(processes: int, kind: str = "MULTI_CPU") -> SimpleNamespace:
    return SimpleNamespace(num_processes=processes, distributed_type=SimpleNamespace(value=kind))


def test_a_world_of_another_size_than_asked_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(WORLD_SIZE, "4")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    check_launch(state(4))
    with pytest.raises(ValueError, match="requested 4 processes, but this run has 2; on CPUs take"):
        check_launch(state(2))


def test_a_run_that_nobody_launched_asks_for_nothing() -> None:
    assert requested_launches({}, [["bash"], ["/usr/bin/python3", "-m", "pytest"]]) == []


@pytest.mark.parametrize(
    "command",
    [
        ["python", "-m", "accelerate.commands.launch", "--num_processes", "3", "-m", "llm_forget", "unlearn", "x.yaml"],
        ["/env/bin/python", "/env/bin/accelerate", "launch", "--num_processes=3", "train.py", "--num_processes", "7"],
        ["/env/bin/python", "/env/bin/accelerate-launch", "--cpu", "--num_processes", "3", "train.py"],
    ],
)
def test_the_command_line_of_accelerate_is_read_up_to_the_script(command: list[str]) -> None:
    assert requested_launches({}, [["sh"], command]) == [RequestedLaunch(3, "accelerate launch")]


@pytest.mark.parametrize(("name", "processes"), [("cpu_2", 2), ("cpu", 1)])
def test_the_config_file_is_read_where_the_command_line_says_nothing(name: str, processes: int) -> None:
    command = ["python", "-m", "accelerate.commands.launch", "--config_file", config(name), "train.py"]
    assert requested_launches({}, [command]) == [RequestedLaunch(processes, "accelerate launch")]


def test_the_command_says_the_same_as_accelerate_launch_by_hand() -> None:
    path = resources.locate("accelerate_configs", "ddp")
    command = launch_command(["unlearn", "r.yaml", "--seed", "1"], path, 4)
    assert command[1:] == [
        *("-m", "accelerate.commands.launch", "--config_file", str(path), "--num_processes", "4"),
        *("-m", "llm_forget", "unlearn", "r.yaml", "--seed", "1"),
    ]


def test_launches_that_would_silently_become_something_else_are_refused_before_they_start(tmp_path: Path) -> None:
    def written(text: str) -> Path:
        (tmp_path / "config.yaml").write_text(text)
        return tmp_path / "config.yaml"

    with pytest.raises(ValueError, match=r"starts one process, but 2 are requested; take cpu_2"):
        launch_command([], written("distributed_type: MULTI_CPU\nuse_cpu: true\nnum_processes: 2\n"), None)
    with pytest.raises(ValueError, match=r"starts one process, but 2 are requested; take ddp"):
        launch_command([], written("distributed_type: 'NO'\n"), 2)
    with pytest.raises(ValueError, match="FSDP on a CPU, where accelerate runs DDP"):
        launch_command([], written("distributed_type: FSDP\nuse_cpu: true\nnum_processes: 2\n"), None)
    with pytest.raises(ValueError, match="give --num_processes N"):
        launch_command([], written("distributed_type: MULTI_GPU\n"), None)
