"""Unlearning, from two files and a model to a run directory; one process, two or a killed one give the same."""

import json
import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from llm_forget.core.launch import WORLD_SIZE
from llm_forget.core.run_directory import Run
from llm_forget.training.callbacks import MetricsFile
from llm_forget.training.trainer import UnlearnTrainer
from llm_forget.workflows.finetune import finetune
from llm_forget.workflows.unlearn import unlearn
from tests.support.forked import forked, forked_world, llm_forget, started

pytestmark = pytest.mark.slow

CANARY = "Zebulon Quickfeather"
WEIGHTS = "adapter_model.safetensors"
SMALL = {"lora_r": 4, "lora_alpha": 8, "per_device_train_batch_size": 4, "disable_tqdm": True, "use_cpu": True}


@pytest.fixture
def job(tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Keys of a small unlearning run on files."""
    monkeypatch.setenv("LLM_FORGET_CACHE", str(tmp_path / "cache"))
    for name, count in (("forget", 6), ("retain", 8)):
        rows = [
            {"id": f"{name}-{i}", "question": f"Who is {name} {i}?", "answer": f"{CANARY} {name} {i}"}
            for i in range(count)
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "model_name_or_path": str(tiny_folder), "output_dir": str(tmp_path / "run"), "num_train_epochs": 2,
        "forget": str(tmp_path / "forget.jsonl"), "retain": str(tmp_path / "retain.jsonl"),
        "learning_rate": 1e-3, **SMALL,
    }  # fmt: skip


def test_a_run_holds_config_provenance_metrics_and_adapter(job: dict[str, Any]) -> None:
    run = unlearn(**job)
    assert run.complete
    assert run.config["method"] == "npo"
    facts = run.provenance
    assert facts["data"]["forget"]["ids"] == [f"forget-{i}" for i in range(6)]
    assert facts["base"]["digest"].startswith("sha256:")
    assert facts["steps"] == 4
    assert facts["objective"]["forget"] == [{"name": "npo", "weight": 1.0, "beta": 0.1}]
    steps = [json.loads(line)["step"] for line in run.metrics_file.read_text().splitlines()]
    assert steps[-1] == 4
    assert {p.name for p in run.adapter.iterdir()} >= {
        "adapter_model.safetensors",
        "adapter_config.json",
        "manifest.json",
    }


def test_the_written_config_makes_the_same_adapter(job: dict[str, Any], tmp_path: Path) -> None:
    first = unlearn(**job)
    keys = {**first.config, "output_dir": str(tmp_path / "again")}
    again = unlearn(**keys)
    weights = [(run.adapter / "adapter_model.safetensors").read_bytes() for run in (first, again)]
    assert weights[0] == weights[1]


def test_a_finished_run_is_not_repeated_and_another_config_is_refused(job: dict[str, Any]) -> None:
    run = unlearn(**job)
    stamp = (run.adapter / "adapter_model.safetensors").stat().st_mtime_ns
    unlearn(**job)
    assert (run.adapter / "adapter_model.safetensors").stat().st_mtime_ns == stamp
    with pytest.raises(ValueError, match="holds a run with another learning_rate"):
        unlearn(**{**job, "learning_rate": 0.5})
    assert unlearn(**{**job, "learning_rate": 0.5, "overwrite": True}).config["learning_rate"] == 0.5


def test_a_dry_run_reads_everything_and_writes_nothing(job: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    unlearn(**job, dry_run=True)
    output = capsys.readouterr().out
    assert "estimated peak memory" in output
    assert "forget" in output
    assert not Path(job["output_dir"]).exists()
    with pytest.raises(ValueError, match="beat"):
        unlearn(**job, dry_run=True, method_args={"beat": 1})


def test_text_to_forget_appears_nowhere_in_a_run(job: dict[str, Any], capfd: pytest.CaptureFixture[str]) -> None:
    run = unlearn(**job, save_strategy="steps", save_steps=1)
    with pytest.raises(ValueError, match="forget") as error:
        unlearn(**{**job, "retain": job["forget"], "output_dir": job["output_dir"] + "2"})
    out, err = capfd.readouterr()
    needle = CANARY.split()[0]
    assert needle not in out + err + str(error.value)
    cached = [p for folder in (run.path, run.path.parent / "cache") for p in folder.rglob("*") if p.is_file()]
    assert len(cached) > 10
    assert [p for p in cached if needle.encode() in p.read_bytes()] == []


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"retain": None}, "the objective needs rows of 'retain'"),
        ({"method": "npoo"}, "did you mean 'npo'"),
        ({"gradient": "pcgrd"}, "did you mean 'pcgrad'"),
        ({"gradient_args": {"rho": 1}}, "gradient_args is set, but gradient 'sum' has no parameters"),
        ({"model_name_or_path": "./nowhere"}, "does not exist"),
        ({"alternate": "builtin:demo/idk"}, "no term of this objective uses preferred answers"),
        ({"train": "builtin:demo/retain"}, "train is a key of finetune"),
        ({"method": "grad_ascent", "max_retain_drop": 0.1}, "no term of this objective uses them"),
        ({"method": "grad_ascent", "gradient": "pcgrad"}, "but the objective has only one"),
        ({"suite": "dmo"}, "did you mean 'demo'"),
        ({"suite": "basic,dmo"}, "did you mean 'demo'"),
    ],
)
def test_invalid_settings_are_refused_before_anything_is_written(job: Any, change: Any, sentence: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=r".") as error:
        unlearn(**{**job, **change})
    assert sentence in str(error.value)
    assert not Path(job["output_dir"]).exists()


def test_invalid_data_leave_the_output_dir_free(job: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        unlearn(**{**job, "forget": str(tmp_path / "typo.jsonl")})
    assert unlearn(**job).complete
    with pytest.raises(ValueError, match="does not exist"):
        unlearn(**{**job, "forget": str(tmp_path / "typo.jsonl"), "overwrite": True})
    assert Run.open(job["output_dir"]).complete, "what was there is deleted only when its successor has its data"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"splits": {"x": "nowhere.jsonl"}}, "nowhere.jsonl"),
        ({"holdout": "nowhere.jsonl"}, "nowhere.jsonl"),
        ({"method": "rmu", "method_args": {"layer": 50}}, "the model has layers 0 to 1"),
    ],
)
def test_a_dry_run_also_reads_rows_that_only_the_evaluation_needs(job: Any, change: Any, sentence: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=sentence):
        unlearn(**{**job, **change}, dry_run=True)


class _Cut(RuntimeError):
    pass


def cut_off(job: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave a run with checkpoints behind, as a kill before the end does."""

    def end(*_: Any) -> None:
        raise _Cut

    with monkeypatch.context() as patched:
        patched.setattr(UnlearnTrainer, "_finalize_training", end)
        with pytest.raises(_Cut):
            unlearn(**job)


def test_rows_that_changed_since_the_interruption_are_refused(job: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    cut_off(job, monkeypatch)
    retain = Path(job["retain"])
    rows = retain.read_text()
    retain.write_text(rows.replace("retain 3", "retain three"))
    with pytest.raises(ValueError, match=r"^rows of retain changed since run .* was interrupted"):
        unlearn(**job)
    retain.write_text(rows)
    assert unlearn(**job).provenance["cost"]["resumed"]


def test_metrics_are_json_even_if_a_norm_is_not_finite(tmp_path: Path) -> None:
    metrics = MetricsFile(tmp_path / "metrics.jsonl")
    state = SimpleNamespace(is_world_process_zero=True, global_step=3)
    metrics.on_log(None, state, None, logs={"loss": 1.0, "grad_norm": float("nan")})
    assert json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=pytest.fail)["grad_norm"] is None


def test_a_finetuned_adapter_stays_frozen_below_the_new_one(job: dict[str, Any], tmp_path: Path) -> None:
    keys = {k: v for k, v in job.items() if k not in ("forget", "retain")}
    train = [job["forget"], job["retain"]]
    target = finetune(**{**keys, "train": train, "use_peft": True, "output_dir": str(tmp_path / "target")})
    before = load_file(target.adapter / "adapter_model.safetensors")
    run = unlearn(**{**job, "model_name_or_path": str(target.path)})
    manifest = json.loads((run.adapter / "manifest.json").read_text())
    assert [beneath["name"] for beneath in manifest["beneath"]] == ["target"]
    after = load_file(target.adapter / "adapter_model.safetensors")
    assert all((before[k] == after[k]).all() for k in before)


def test_idk_dpo_pairs_refusals_and_gradient_checkpointing_trains_every_layer(job: dict[str, Any]) -> None:
    run = unlearn(**job, method="idk_dpo", alternate="builtin:demo/idk", gradient_checkpointing=True, max_steps=2)
    weights = load_file(run.adapter / "adapter_model.safetensors")
    b = [tensor for name, tensor in weights.items() if "lora_B" in name]
    assert b
    assert all(tensor.abs().max() > 0 for tensor in b)


def test_weighted_sources_are_mixed(job: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "more.jsonl").write_text('{"id": "m", "question": "Why?", "answer": "Because."}\n')
    mixed = [{"path": job["retain"], "weight": 3}, {"path": str(tmp_path / "more.jsonl"), "weight": 1}]
    run = unlearn(**{**job, "retain": mixed})
    assert run.provenance["data"]["retain"]["rows"] == 9


# ---- several processes, and processes that die ----


def start(job: dict[str, Any], **changes: Any) -> list[str]:
    """Words of the command for one run; the recipe is written beside it."""
    keys = {**job, **changes}
    recipe = Path(keys["output_dir"]).with_suffix(".yaml")
    recipe.write_text(yaml.safe_dump(keys))
    return ["unlearn", str(recipe)]


@pytest.mark.processes
def test_two_processes_train_the_adapter_of_one_with_twice_the_batch(job: dict[str, Any], tmp_path: Path) -> None:
    one = unlearn(**{**job, "output_dir": str(tmp_path / "one"), "optim": "sgd", "learning_rate": 0.1})
    command = start(
        job, per_device_train_batch_size=2, optim="sgd", learning_rate=0.1, save_strategy="steps", save_steps=3
    )
    for done in forked_world(2, lambda _: llm_forget(*command)()):
        assert done.returncode == 0, done.stderr
    two = Run.open(job["output_dir"])
    assert (two.provenance["processes"], two.provenance["wrapper"]) == (2, "DistributedDataParallel")
    with pytest.raises(ValueError, match="holds a run with another processes"):
        unlearn(**two.config)
    assert one.provenance["processes"] == 1
    weights = [load_file(run.adapter / "adapter_model.safetensors") for run in (one, two)]
    moved = max(float(t.abs().max()) for name, t in weights[0].items() if "lora_B" in name)
    furthest = max(float((weights[0][k] - weights[1][k]).abs().max()) for k in weights[0])
    assert moved > 1e-4
    assert furthest < 1e-6

    # The last checkpoint is resumed from, by two processes again, to the same bytes.
    bytes_before = (two.adapter / "adapter_model.safetensors").read_bytes()
    state = json.loads(two.state_file.read_text())
    two.state_file.write_text(json.dumps({**state, "status": "running"}))
    (two.checkpoints / "checkpoint-4" / "complete.json").unlink(missing_ok=True)
    again = forked_world(2, lambda _: llm_forget(*command)())
    assert [done.returncode for done in again] == [0, 0], again[0].stderr[-3000:]
    assert "resuming from checkpoint" in again[0].stderr
    assert (two.adapter / "adapter_model.safetensors").read_bytes() == bytes_before


@pytest.mark.processes
def test_a_killed_run_resumes_to_the_same_adapter_bytes(job: dict[str, Any], tmp_path: Path) -> None:
    how = {"save_strategy": "steps", "save_steps": 1, "num_train_epochs": 12, "logging_steps": 1}
    whole = unlearn(**{**job, **how, "output_dir": str(tmp_path / "whole")})
    command = start(job, **how)
    run = Run(Path(job["output_dir"]))
    with started(llm_forget(*command)) as process:
        deadline = time.monotonic() + 120
        while len(list(run.checkpoints.glob("checkpoint-*/complete.json"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.07)  # wherever it is by now
        assert process.kill().returncode == -signal.SIGKILL
    assert not run.complete, "the run ended before it could be killed: give it more epochs"
    done = forked(llm_forget(*command))
    assert done.returncode == 0, done.stderr
    weights = [(r.adapter / "adapter_model.safetensors").read_bytes() for r in (whole, run)]
    assert weights[0] == weights[1]
    steps = [json.loads(line)["step"] for line in run.metrics_file.read_text().splitlines()]
    assert steps[:-1] == sorted(set(steps)), "no step is logged twice"


def test_a_run_with_fewer_processes_than_requested_is_refused(job: dict[str, Any]) -> None:
    done = forked(llm_forget(*start(job)), environment={WORLD_SIZE: "2"})
    assert done.returncode != 0
    assert "requested 2 processes, but this run has 1" in done.stderr
    assert not (Path(job["output_dir"]) / "adapter").exists()


def test_deletions_from_one_model_give_the_same_bytes_in_any_order_and_alone(job, tmp_path) -> None:
    for name in "ab":
        rows = [{"id": f"{name}{i}", "question": f"Who is {name} {i}?", "answer": f"{i} of {name}"} for i in range(4)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found: dict[str, set[bytes]] = {"a": set(), "b": set()}
    for number, order in enumerate(("b", "ab", "ba")):
        for name in order:
            keys = {**job, "forget": str(tmp_path / f"{name}.jsonl"), "output_dir": str(tmp_path / f"{number}{name}")}
            found[name].add((unlearn(**keys).adapter / WEIGHTS).read_bytes())
    assert [len(each) for each in found.values()] == [1, 1]
    assert found["a"] != found["b"]


def test_two_runs_resumed_from_one_checkpoint_equal_an_uninterrupted_run(job, tmp_path, monkeypatch) -> None:
    job |= {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 4}
    whole = (unlearn(**{**job, "output_dir": str(tmp_path / "whole")}).adapter / WEIGHTS).read_bytes()
    cut_off(job, monkeypatch)
    for path in Path(job["output_dir"]).glob("checkpoints/checkpoint-[34]"):
        shutil.rmtree(path)
    for name in ("one", "two"):
        shutil.copytree(job["output_dir"], tmp_path / name)
    for name in ("one", "two"):
        run = unlearn(**{**job, "output_dir": str(tmp_path / name)})
        assert run.provenance["cost"]["resumed"]
        assert (run.adapter / WEIGHTS).read_bytes() == whole
