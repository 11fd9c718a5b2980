"""Any number of processes and micro-batches trains the same weights; a process that dies ends the launch."""

import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from llm_forget.core import resources
from tests.support.forked import forked_world
from tests.support.forked_launch import launched
from tests.support.repository import SUPPORT
from tests.support.train_worker import STEPS, trained, write_material

# Of each kind one: cached reference, reference in the step, hidden states, dual variable, paired answers, surgery.
NAMES = ["npo", "npo_kl", "rmu", "pdu", "idk_dpo", "grad_diff+gru", "grad_diff+sam"]
# How four slots of a step are cut: processes, rows of a process at a time, micro-batches.
STOPPED = "one_sided:grad_diff@2x1"
CUTS = {
    2: [*(f"{name}@2x1" for name in NAMES), "pdu@1x2", STOPPED],
    4: ["npo@1x1", "grad_diff+gru@1x1"],
}
EXHAUSTIVE_CUTS = [("npo", "4x1", "2x2"), ("npo", "5x1", "1x5"), ("pdu", "4x1", "1x4"), ("pdu", "5x1", "3x2")]
PAIRS = [(processes, run) for processes, runs in CUTS.items() for run in runs if run != STOPPED]


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> Path:
    return write_material(tmp_path_factory.mktemp("processes"), tiny_tokenizer)


@pytest.fixture(scope="module")
def worlds(material: Path, libraries: None) -> Path:
    """Every cut of `CUTS`, trained by as many processes."""
    for processes, runs in CUTS.items():

        def train(_: int, out: Path = material / str(processes), runs: list[str] = runs) -> None:
            for run in runs:
                trained(material, out, run)

        for done in forked_world(processes, train):
            assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return material


@pytest.fixture(scope="module")
def alone(material: Path) -> Any:
    """``alone(name)``: adapter and log of one process that takes the four slots of a step at once."""
    made: dict[str, Any] = {}

    def train(name: str, cut: str = "4x1") -> Any:
        run = f"{name}@{cut}"
        if run not in made:
            made[run] = trained(material, material / "1", run)
        return load_file(material / "1" / run / "adapter_model.safetensors"), made[run]

    return train


def assert_same_training(one: tuple[Any, Any], folder: Path, facts: dict[str, Any]) -> None:
    weights, trainer = one
    others = load_file(folder / "adapter_model.safetensors")
    # The steps changed the weights by much, so equality does not come from equal initial weights.
    assert max(float(tensor.abs().max()) for key, tensor in weights.items() if "lora_B" in key) > 2e-3
    assert weights.keys() == others.keys()
    assert max(float((weights[key] - others[key]).abs().max()) for key in weights) < 2e-6
    assert trainer.state.global_step == facts["steps"] == STEPS
    for mine, theirs in zip(trainer.state.log_history[:-1], facts["log"][:-1], strict=True):
        for key in mine.keys() - {"tokens_per_second", "epoch"}:
            assert theirs[key] == pytest.approx(mine[key], rel=1e-4, abs=1e-5), key


@pytest.mark.long
@pytest.mark.processes
@pytest.mark.parametrize(("processes", "run"), PAIRS)
def test_processes_train_the_same_adapter_as_one_process_with_all_their_rows(
    worlds: Path, alone: Any, processes: int, run: str
) -> None:
    folder = worlds / str(processes) / run
    facts = json.loads((folder / "facts-0.json").read_text())
    assert (facts["wrapper"], facts["processes"]) == ("DistributedDataParallel", processes)
    assert_same_training(alone(run.split("@")[0]), folder, facts)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "whole", "cut"),
    [("npo", "4x1", "1x4"), ("npo", "5x1", "3x2"), ("pdu", "4x1", "2x2"), ("pdu", "5x1", "1x5")]
    + [pytest.param(*case, marks=pytest.mark.exhaustive) for case in EXHAUSTIVE_CUTS],
)
def test_micro_batches_train_the_same_weights_as_one_batch(
    material: Path, alone: Any, name: str, whole: str, cut: str
) -> None:
    run = f"{name}@{cut}"
    trained(material, material / "1", run)
    facts = json.loads((material / "1" / run / "facts-0.json").read_text())
    assert_same_training(alone(name, whole), material / "1" / run, facts)


@pytest.mark.processes
@pytest.mark.parametrize("processes", [2, 4])
def test_processes_have_disjoint_rows_that_together_are_those_of_one_process(
    worlds: Path, alone: Any, processes: int
) -> None:
    run = next(run for run in CUTS[processes] if run.startswith("npo@"))
    folder = worlds / str(processes) / run
    seen = [json.loads((folder / f"facts-{rank}.json").read_text())["seen"] for rank in range(processes)]
    _, one = alone("npo")
    for step in range(STEPS):
        for split, expected in one.seen[step].items():
            shares = [ranks[step][split] for ranks in seen]
            rows = [[row for row in share if row >= 0] for share in shares]
            assert Counter(row for share in shares for row in share) == Counter(expected)
            assert len({row for share in rows for row in share}) == sum(map(len, rows))  # none is on two processes
    assert len({json.dumps([step["retain"] for step in ranks]) for ranks in seen}) == processes
    # A forget row is met with another retain row in another epoch.
    pairs = {(f, r) for ranks in seen for step in ranks for f, r in zip(step["forget"], step["retain"], strict=True)}
    assert len(pairs - {(-1, -1)}) > 2 * 5


@pytest.mark.processes
def test_all_processes_stop_together_if_the_rows_of_one_drop(worlds: Path) -> None:
    facts = [json.loads((worlds / "2" / STOPPED / f"facts-{rank}.json").read_text()) for rank in (0, 1)]
    threshold, (still, dropping) = 0.06, [of_one["drops"] for of_one in facts]
    assert max(still) <= 0.0
    assert dropping[1] > threshold  # alone, process 1 would have stopped here
    means = [sum(pair) / 2 for pair in zip(still, dropping, strict=True)]
    assert means[1] < threshold < means[2]
    assert [of_one["steps"] for of_one in facts] == [3, 3]
    assert [line["step"] for line in facts[0]["log"] if "stopped_early" in line] == [3]


def output_of_a_failing_launch(material: Path, folder: Path, end: str) -> str:
    """Return stderr of two processes, one of which dies by ``end``; the launch fails soon and writes nothing."""
    began = time.monotonic()
    config = resources.locate("accelerate_configs", "cpu_2")
    words = ["--config_file", config, SUPPORT / "train_worker.py", material, folder, "npo@2x1"]
    done = launched("accelerate.commands.launch", *words, environment={"WORKER_END": end})
    assert done.returncode != 0
    assert time.monotonic() - began < 90
    assert not list(folder.rglob("*.safetensors"))
    return done.stderr


@pytest.mark.processes
def test_a_killed_process_ends_the_launch(material: Path, tmp_path: Path) -> None:
    assert "SIGKILL" in output_of_a_failing_launch(material, tmp_path, "kill")  # the launcher says of what


@pytest.mark.processes
def test_an_error_in_one_process_ends_the_launch_and_is_printed_once(material: Path, tmp_path: Path) -> None:
    output = output_of_a_failing_launch(material, tmp_path, "error")
    assert output.count("FloatingPointError: term 'forget/npo' is not finite") == 1
