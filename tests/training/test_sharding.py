"""Sharded models train the same adapter as one process: ZeRO-2 and ZeRO-3 by DeepSpeed, FSDP2 by torch itself."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from llm_forget.core import resources
from llm_forget.core.launch import WORLD_SIZE, check_launch, launch_command
from tests.support import fsdp_worker
from tests.support.forked import forked_world
from tests.support.repository import ROOT, SUPPORT
from tests.support.train_worker import STEPS, trained, write_material

# Cached reference, reference in the step, hidden states, and two micro-batches.
RUNS = {"zero2": ["npo@2x1", "npo_kl@2x1", "npo@1x2"], "zero3": ["npo@2x1", "npo_kl@2x1", "rmu@2x1"]}
ADAM = {"optim": "adamw_torch", "learning_rate": 1e-2, "adam_epsilon": 1e-3, "resumed_at": STEPS // 2}


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {k: v for k, v in os.environ.items() if k not in ("WORLD_SIZE", "RANK", "LOCAL_RANK")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{inherited['PATH']}"  # DeepSpeed looks for ninja there
    added = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PATH": path, **environment}
    return subprocess.run(
        [sys.executable, *command], env={**inherited, **added}, capture_output=True, text=True, timeout=400, check=False
    )


def succeed(*command: str, **environment: str) -> str:
    done = run(*command, **environment)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def largest_difference(one: Path, other: Path) -> float:
    weights, others = load_file(one), load_file(other)
    assert weights.keys() == others.keys()
    assert all(tensor.numel() == weights[key].numel() > 0 for key, tensor in others.items())
    return max(float((weights[key] - others[key]).abs().max()) for key in weights)


@pytest.fixture(scope="module")
def deepspeed() -> None:
    for name in ("deepspeed", "ninja"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f'needs {name}: pip install "llm-forget[deepspeed]"')
    if shutil.which("c++") is None:
        pytest.skip("needs a C++ compiler, with which DeepSpeed makes its communication on CPUs")


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> Path:
    folder = write_material(tmp_path_factory.mktemp("sharding"), tiny_tokenizer)
    for split, count in (("forget", 5), ("retain", 9)):
        rows = [
            {"id": f"{split}-{i}", "prompt": f"{split} {i}?", "completion": f"{i} " * (1 + i % 4)} for i in range(count)
        ]
        (folder / f"{split}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return folder


def launched(config: str, *words: str, **environment: str) -> str:
    file = str(resources.locate("accelerate_configs", config))
    launch = ("-m", "accelerate.commands.launch", "--config_file", file, str(SUPPORT / "train_worker.py"))
    return succeed(*launch, *words, **environment)


@pytest.mark.processes
@pytest.mark.slow
@pytest.mark.parametrize("config", ["zero2", "zero3"])
def test_deepspeed_trains_the_adapter_of_one_process(deepspeed: None, material: Path, config: str) -> None:
    launched(config, str(material), str(material / config), *RUNS[config])
    for text in RUNS[config]:
        facts = json.loads((material / config / text / "facts-0.json").read_text())
        assert (facts["wrapper"], facts["processes"], facts["steps"]) == ("DeepSpeedEngine", 2, STEPS)
        alone = f"{text.split('@')[0]}@4x1"
        trained(material, material / "1", alone)
        files = [material / place / "adapter_model.safetensors" for place in (f"1/{alone}", f"{config}/{text}")]
        weights = load_file(files[0])
        assert max(float(tensor.abs().max()) for key, tensor in weights.items() if "lora_B" in key) > 2e-3
        assert largest_difference(*files) < 2e-6


@pytest.mark.processes
@pytest.mark.slow
@pytest.mark.parametrize("config", ["zero2", "zero3"])
def test_deepspeed_resumes_from_a_checkpoint_to_the_same_adapter(deepspeed: None, material: Path, config: str) -> None:
    out = material / f"{config}-adam"
    launched(config, str(material), str(out), "npo@2x1", WORKER_SETTINGS=json.dumps(ADAM))
    trained(material, material / "adam", "npo@4x1", **{k: v for k, v in ADAM.items() if k != "resumed_at"})
    file = "adapter_model.safetensors"
    half, whole = out / "npo@2x1" / f"checkpoint-{STEPS // 2}" / file, out / "npo@2x1" / file
    assert largest_difference(half, whole) > 1e-2  # the second half moved it
    assert largest_difference(out / "npo@2x1" / "resumed" / file, whole) < 1e-6
    assert largest_difference(material / "adam" / "npo@4x1" / file, whole) < 1e-5


@pytest.mark.processes
@pytest.mark.slow
def test_reference_adapter_and_merged_model_of_zero3_are_those_of_one_process(
    deepspeed: None, material: Path, tmp_path: Path
) -> None:
    keys = {
        "model_name_or_path": material / "model", "forget": material / "forget.jsonl", "method": "npo",
        "retain": material / "retain.jsonl", "max_steps": 6, "learning_rate": 1e-2, "adam_epsilon": 1e-3,
        "lr_scheduler_type": "constant", "logging_steps": 1, "save_strategy": "no", "lora_r": 4,
    }  # fmt: skip
    words = [word for key, value in keys.items() for word in (f"--{key}", str(value))]
    own = {"alone": ["--use_cpu", "true", "--per_device_train_batch_size", "4"]}
    own["cut"] = ["--accelerate_config", "zero3", "--ddp_backend", "gloo", "--per_device_train_batch_size", "2"]
    for name, rest in own.items():
        command = ("-m", "llm_forget", "unlearn", *words, *rest, "--output_dir", str(tmp_path / name))
        succeed(*command, LLM_FORGET_CACHE=str(tmp_path / "cache" / name))
        succeed("-m", "llm_forget", "merge", str(tmp_path / name), "--output_dir", str(tmp_path / "merged" / name))
    provenance = json.loads((tmp_path / "cut" / "provenance.json").read_text())
    assert (provenance["wrapper"], provenance["processes"]) == ("DeepSpeedEngine", 2)
    (file,) = (tmp_path / "cache" / "alone").rglob("*.safetensors")
    assert largest_difference(file, tmp_path / "cache" / "cut" / file.relative_to(tmp_path / "cache" / "alone")) < 1e-5
    for place in ("{}/adapter/adapter_model.safetensors", "merged/{}/model.safetensors"):
        assert largest_difference(*(tmp_path / place.format(name) for name in own)) < 1e-5
    moved = largest_difference(
        material / "model" / "model.safetensors", tmp_path / "merged" / "cut" / "model.safetensors"
    )
    assert moved > 1e-2


def test_deepspeed_that_would_run_as_separate_processes_or_as_ddp_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.yaml").write_text("distributed_type: DEEPSPEED\nuse_cpu: true\nnum_processes: 2\n")
    with pytest.raises(ValueError, match=r"DEEPSPEED on a CPU, where accelerate runs DDP; .* --ddp_backend gloo"):
        launch_command([], tmp_path / "config.yaml", None)
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv(WORLD_SIZE, "2")
    monkeypatch.delenv("WORLD_SIZE", raising=False)

    def state(processes: int, kind: str) -> SimpleNamespace:
        return SimpleNamespace(num_processes=processes, distributed_type=SimpleNamespace(value=kind))

    check_launch(state(2, "DEEPSPEED"))
    with pytest.raises(ValueError, match=r"requested 2 processes, but this run has 1; .* --ddp_backend gloo"):
        check_launch(state(1, "DEEPSPEED"))
    with pytest.raises(ValueError, match=r"requested DEEPSPEED, but accelerate runs MULTI_CPU here; .* --ddp_backend"):
        check_launch(state(2, "MULTI_CPU"))


@pytest.mark.processes
def test_fsdp2_trains_and_saves_the_adapter_of_the_unsharded_model(tmp_path: Path) -> None:
    """Gradients of one step of all kinds, then more steps, the saved adapter, and the adapter read again."""
    first, second = forked_world(2, lambda _: fsdp_worker.main(tmp_path, sys.stdout.write))
    assert (first.returncode, second.returncode) == (0, 0), first.stderr[-4000:] + second.stderr[-4000:]
    assert first.stdout.count("difference=") == 4
    cut, whole = (tmp_path / name / "adapter_model.safetensors" for name in ("cut", "whole"))
    assert cut.stat().st_size == whole.stat().st_size > 4 * sum(t.numel() for t in load_file(whole).values())
    assert largest_difference(tmp_path / "start" / "adapter_model.safetensors", whole) > 1e-2
    assert largest_difference(cut, whole) < 1e-5
    assert torch.load(tmp_path / "logits.pt", weights_only=True).item() < 1e-4
