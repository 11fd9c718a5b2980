"""QLoRA from recipe to merged model, optimizers in 8 bit and in pages, and what precision the adapter is kept in."""

import json
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from llm_forget.core.files import read_json, write_json
from llm_forget.core.run_directory import Run
from llm_forget.models.adapters.lora import attach_adapter
from llm_forget.workflows.evaluate import evaluate
from llm_forget.workflows.finetune import finetune
from llm_forget.workflows.merge import merge
from llm_forget.workflows.unlearn import unlearn
from tests.support.forked import forked, forked_world, llm_forget, started

pytestmark = pytest.mark.slow

pytest.importorskip("bitsandbytes")

NF4 = {"load_in_4bit": True, "use_bnb_nested_quant": True}
INT8 = {"load_in_8bit": True}
SUITE = {
    "probes": {f"{s}_rows": {"probe": "logprobs", "split": s} for s in ("forget", "retain")},
    "metrics": {s: {"metric": "probability", "records": f"{s}_rows", "goal": "keep"} for s in ("forget", "retain")},
    "verdict": {"works": [{"line": "retain", "at_least": 0.0}]},
}
EVERY_STEP = {"save_strategy": "steps", "save_steps": 1}
HOWS = {"float32": {}, "nf4": NF4, "int8": INT8}


def sample(*names: str, methods: tuple[str, ...]) -> list[Any]:
    """Every precision with every method; those that are not in ``names`` (precision-method) are exhaustive."""
    precisions = {name.partition("-")[0] for name in names}
    cases = [(f"{how}-{method}", HOWS[how], method) for how in HOWS if how in precisions for method in methods]
    return [
        pytest.param(*case, id=name, marks=() if name in names else pytest.mark.exhaustive) for name, *case in cases
    ]


@pytest.fixture
def job(tmp_path: Path, tiny_model: Any, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Keys of a run of 4 steps on a model whose matrices are whole blocks of 64 weights."""
    monkeypatch.setenv("LLM_FORGET_CACHE", str(tmp_path / "cache"))
    base = tmp_path / "base"
    tiny_model(
        vocab_size=len(tiny_tokenizer), hidden_size=64, intermediate_size=128, num_key_value_heads=4
    ).save_pretrained(base)
    tiny_tokenizer.save_pretrained(base)
    for name, count in (("forget", 6), ("retain", 8)):
        rows = [{"id": f"{name}-{i}", "question": f"Who is {i}?", "answer": f"{name} {i}"} for i in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump(SUITE))
    return {
        "model_name_or_path": str(base), "output_dir": str(tmp_path / "run"), "num_train_epochs": 2,
        "forget": str(tmp_path / "forget.jsonl"), "retain": str(tmp_path / "retain.jsonl"), "learning_rate": 1e-2,
        "lora_r": 8, "lora_alpha": 16, "per_device_train_batch_size": 4, "logging_steps": 1, "disable_tqdm": True,
        "use_cpu": True,
    }  # fmt: skip


def weights(run: Run) -> dict[str, torch.Tensor]:
    return load_file(run.adapter / "adapter_model.safetensors")


def furthest(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[k] - b[k]).abs().max()) for k in a)


def measured(model: Any, job: dict[str, Any], role: str = "unlearned", **changes: Any) -> dict[str, float]:
    """Probabilities of the rows of both splits, by the model that has this role."""
    data = {key: job[key] for key in ("forget", "retain", "use_cpu")}
    results = evaluate(model, Path(job["forget"]).parent / "suite.yaml", quiet=True, **data, **changes)
    (suite,) = results["suites"].values()
    return {name: (line if role == "unlearned" else line[role])["value"] for name, line in suite["metrics"].items()}


@pytest.mark.parametrize(("how", "method"), sample("nf4-npo_kl", "int8-npo", methods=("npo", "npo_kl", "grad_diff")))
def test_a_quantised_base_is_trained_evaluated_and_merged_as_one_model(
    job: dict[str, Any], how: dict[str, Any], method: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoModelForCausalLM

    plain = read_json(unlearn(**{**job, "output_dir": str(tmp_path / "plain"), "max_steps": 1}).provenance_file)
    quantised = measured(job["model_name_or_path"], job, **how)
    assert quantised != measured(job["model_name_or_path"], job)
    run = unlearn(**{**job, "output_dir": str(tmp_path / method)}, **how, method=method)
    losses = [json.loads(line).get("loss") for line in run.metrics_file.read_text().splitlines()]
    assert losses[3] < losses[0] - 0.01
    assert run.config.items() >= how.items()
    assert read_json(run.adapter / "manifest.json")["quantization"].items() >= how.items()
    assert run.provenance["base"]["digest"] == plain["base"]["digest"], "what is on disk, however it is loaded"

    # A run is evaluated on the base it was trained on: before it, the quantised model, not the one on disk.
    before = measured(run.path, job, "before")
    assert before == quantised
    unlearned = measured(run.path, job)
    assert unlearned["forget"] < before["forget"] * 0.99

    folder = tmp_path / f"{method}-merged"
    report = merge(run.path, folder)
    assert report["max_abs_logit_difference"] <= report["tolerance"] < 1e-3
    assert report["mean_kl_of_adapter"] > 100 * max(report["mean_kl"], 1e-8)
    assert "quantization_config" not in read_json(folder / "config.json")
    merged = AutoModelForCausalLM.from_pretrained(folder)
    assert {parameter.dtype for parameter in merged.parameters()} == {torch.float32}
    # In 8 bit the activations are rounded as well while training.
    assert measured(folder, job) == pytest.approx(unlearned, rel=1e-5 if how == NF4 else 1e-2)
    assert "MatMul8bitLt" not in "".join(capfd.readouterr()), "said for every layer of every step"


def test_a_target_trained_on_a_quantised_base_is_named_when_it_is_loaded_otherwise(
    job: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keys = {k: v for k, v in job.items() if k not in ("forget", "retain")}
    train = [job["forget"], job["retain"]]
    target = finetune(
        **{**keys, "train": train, "use_peft": True, **NF4, "max_steps": 2, "output_dir": str(tmp_path / "target")}
    )
    above = {**job, "model_name_or_path": str(target.path), "max_steps": 2}
    run = unlearn(**above, **NF4)
    said = "adapter 'target' was trained on a base in 4 bit (nf4 with nested scales)"
    assert said not in caplog.text
    assert merge(run.path, tmp_path / "merged")["max_abs_logit_difference"] < 1e-4
    unlearn(**{**above, "output_dir": str(tmp_path / "other")})
    assert f"{said} and is loaded onto one in full precision" in caplog.text


def cut_back(run: Run, to: int) -> None:
    """As if the run had been killed while it wrote the checkpoint after step `to`."""
    write_json(run.state_file, {**read_json(run.state_file), "status": "running"})
    shutil.rmtree(run.adapter)
    for checkpoint in run.checkpoints.glob("checkpoint-*"):
        if int(checkpoint.name.rpartition("-")[2]) > to:
            (checkpoint / "complete.json").unlink()


@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")  # they run there, without pages
@pytest.mark.parametrize(
    "kinds",
    [
        {"adamw_8bit": "uint8", "paged_adamw_32bit": "float32"},
        pytest.param({"paged_adamw_8bit": "uint8"}, marks=pytest.mark.exhaustive),
    ],
    ids="-".join,
)
def test_optimizers_of_bitsandbytes_learn_what_adamw_learns_and_resume_to_the_same_bytes(
    job: dict[str, Any], tmp_path: Path, kinds: dict[str, str]
) -> None:
    # From 4096 values on, a matrix has its moments in 8 bit.
    job = {**job, "lora_r": 64, "lora_alpha": 128, **NF4, **EVERY_STEP, "save_total_limit": 5}
    adamw = weights(unlearn(**{**job, "output_dir": str(tmp_path / "adamw")}, optim="adamw_torch"))
    moved = max(float(tensor.abs().max()) for name, tensor in adamw.items() if "lora_B" in name)
    assert moved > 0.02
    for optim, kind in kinds.items():
        keys = {**job, "output_dir": str(tmp_path / optim), "optim": optim}
        run = unlearn(**keys)
        state = torch.load(run.checkpoints / "checkpoint-4" / "optimizer.pt", weights_only=True)["state"]
        moments = (s.get("__bnb_optimizer_quant_state__", s)["state1"] for s in state.values())
        assert {str(moment.dtype).removeprefix("torch.") for moment in moments} == {kind}, optim
        learned = weights(run)
        off = sum(float((learned[k] - adamw[k]).square().sum()) for k in adamw if "lora_B" in k) ** 0.5
        assert off < 0.05 * sum(float(adamw[k].square().sum()) for k in adamw if "lora_B" in k) ** 0.5, optim
        cut_back(run, to=2)
        again = unlearn(**keys)
        assert again.provenance["cost"]["resumed"]
        assert furthest(weights(again), learned) == 0, optim


@pytest.mark.parametrize(
    ("how", "method"), sample("float32-npo_kl", "nf4-npo", "int8-npo_kl", methods=("npo", "npo_kl"))
)
def test_gradient_checkpointing_changes_nothing_that_is_learned(
    job: dict[str, Any], tmp_path: Path, how: dict[str, Any], method: str
) -> None:
    job = {**job, **how, "method": method, "max_steps": 3}
    plain = weights(unlearn(**job))
    kept = weights(unlearn(**{**job, "output_dir": str(tmp_path / "kept")}, gradient_checkpointing=True))
    assert furthest(plain, kept) < 1e-7
    assert all(tensor.abs().max() > 1e-3 for name, tensor in kept.items() if "lora_B" in name)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("how", [{}, NF4, INT8], ids=["bfloat16", "nf4", "int8"])
def test_adapter_and_moments_stay_in_float32_on_a_base_in_bfloat16(
    make_trainer: Any, lora_args: Any, job: dict[str, Any], how: dict[str, Any], autocast: bool, tmp_path: Path
) -> None:
    from llm_forget.models.load import load_base

    base = load_base(lora_args(job["model_name_or_path"], dtype="bfloat16", **how))
    trainer = make_trainer(model=base, bf16=autocast, learning_rate=1e-4, max_steps=3)
    trainer.train()
    adapter = {n: p for n, p in trainer.model.named_parameters() if p.requires_grad}
    frozen = {p.dtype for p in trainer.model.parameters() if not p.requires_grad}
    assert torch.bfloat16 in frozen or how, "what is not quantised computes in float32 on a quantised base"
    assert {p.dtype for p in adapter.values()} == {torch.float32}
    moments = [m for state in trainer.optimizer.state.values() for m in (state["exp_avg"], state["exp_avg_sq"])]
    assert {m.dtype for m in moments} == {torch.float32}
    # Steps of 1e-4 are lost in bfloat16, where a weight of 0.1 has neighbours 5e-4 away.
    fine = [(p != p.bfloat16().float()).float().mean() for n, p in adapter.items() if "lora_A" in n]
    assert min(fine) > 0.9
    trainer.save_model(str(tmp_path / "adapter"))
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}


@pytest.mark.long
# reference.py asks whether the compiled wrapper is a PeftModel, and takes the policy where it should take the base.
# The wrapper is what matters, not the code that is generated; with torch's own that takes a minute.
@pytest.mark.parametrize(
    "backend", ["eager", pytest.param("inductor", marks=[pytest.mark.slow, pytest.mark.exhaustive])]
)
def test_a_compiled_model_learns_the_same_against_the_same_reference(
    make_trainer: Any, tiny_model: Any, tiny_tokenizer: Any, lora_args: Any, backend: str
) -> None:
    runs, how = [], {"torch_compile": True, "torch_compile_backend": backend}
    for compiled in (False, True):
        torch.manual_seed(1)
        model = tiny_model(vocab_size=len(tiny_tokenizer), num_hidden_layers=1)
        model = attach_adapter(model, lora_args(lora_target_modules=["v_proj"]))
        # A step of plain SGD shows every gradient; the first step of AdamW shows only its sign.
        step = {"max_steps": 1, "optim": "sgd", "learning_rate": 1.0}
        trainer = make_trainer("npo", batch=7, model=model, lora=False, **step, **(how if compiled else {}))
        with torch.no_grad():  # as on a resume: the policy is not its reference any more
            for name, parameter in trainer.model.named_parameters():
                if "lora_B" in name:
                    parameter.fill_(0.2)
        with torch._dynamo.config.patch(automatic_dynamic_shapes=False):  # shapes in symbols take twice the time
            trainer.train()
        runs.append((trainer, {n: p.detach() for n, p in trainer.model.named_parameters() if p.requires_grad}))
    assert type(runs[1][0].model_wrapped).__name__ == "OptimizedModule"
    seen = [[line["loss"] for line in trainer.state.log_history if "loss" in line] for trainer, _ in runs]
    assert seen[0] == pytest.approx(seen[1], rel=1e-5)
    assert furthest(runs[0][1], runs[1][1]) < 1e-3


# ---- processes that die, and two of them ----


def command(job: dict[str, Any], *more: str) -> list[str]:
    recipe = Path(job["output_dir"]).with_suffix(".yaml")
    recipe.write_text(yaml.safe_dump(job))
    return ["unlearn", str(recipe), *more]


@pytest.mark.processes
@pytest.mark.parametrize(
    ("how", "method"), [({**NF4, "optim": "adamw_8bit", "lora_r": 64}, "npo"), (INT8, "npo_kl")], ids=["nf4", "int8"]
)
def test_a_killed_run_on_a_quantised_base_goes_on_to_the_same_adapter(
    job: dict[str, Any], tmp_path: Path, how: dict[str, Any], method: str
) -> None:
    job = {**job, **how, **EVERY_STEP, "method": method, "num_train_epochs": 5, "learning_rate": 1e-4}
    whole = unlearn(**{**job, "output_dir": str(tmp_path / "whole")})
    run = Run(Path(job["output_dir"]))
    with started(llm_forget(*command(job))) as process:
        deadline = time.monotonic() + 120
        while len(list(run.checkpoints.glob("checkpoint-*/complete.json"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert process.kill().returncode == -signal.SIGKILL
    assert not run.complete, "the run ended before it could be killed: give it more epochs"
    shutil.rmtree(tmp_path / "cache" / "reference", ignore_errors=True)  # measured anew, on the base quantised anew
    done = forked(llm_forget(*command(job)))
    assert done.returncode == 0, done.stderr
    assert run.provenance["cost"]["resumed"]
    assert furthest(weights(run), weights(whole)) == 0


@pytest.mark.processes
def test_two_processes_on_a_quantised_base_train_the_adapter_of_one(job: dict[str, Any], tmp_path: Path) -> None:
    job = {**job, **NF4, "optim": "sgd", "learning_rate": 0.1, "gradient_checkpointing": True}
    one = unlearn(**{**job, "output_dir": str(tmp_path / "one")})
    words = command({**job, "per_device_train_batch_size": 2})
    for done in forked_world(2, lambda _: llm_forget(*words)()):
        assert done.returncode == 0, done.stderr
    two = Run.open(job["output_dir"])
    assert (two.provenance["processes"], two.provenance["wrapper"]) == (2, "DistributedDataParallel")
    assert max(float(t.abs().max()) for name, t in weights(two).items() if "lora_B" in name) > 1e-3
    assert furthest(weights(one), weights(two)) < 1e-6
