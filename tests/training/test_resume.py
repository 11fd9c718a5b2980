"""Resuming: the same bytes wherever the run was interrupted, and never from an incomplete checkpoint."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from llm_forget.training.checkpoints import MARKER, last_complete

pytestmark = pytest.mark.slow

# Each method at one step, each step with one method; the other pairs are exhaustive.
SAMPLE = [("npo", None, 4), ("pdu", None, 3), ("grad_diff", "gru", 7)]
CASES = [
    pytest.param(*case, step, marks=() if (*case, step) in SAMPLE else pytest.mark.exhaustive)
    for case in [("npo", None), ("pdu", None), ("grad_diff", "gru")]
    for step in (3, 4, 7)
]

EVERY_STEP = {"batch": 2, "save_strategy": "steps", "save_steps": 1}


def weights(trainer: Any) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


class _DieAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def undisturbed() -> dict[str, tuple[bytes, Any]]:
    """Adapter and dual variables at the end of the whole run of a method, filled by the first test that needs it."""
    return {}


@pytest.mark.parametrize(("method", "rule", "step"), CASES)
def test_a_resumed_run_ends_with_the_same_adapter_bytes(
    make_trainer: Any, tmp_path: Path, undisturbed: Any, method: str, rule: str | None, step: int
) -> None:
    how = {"method": method, "gradient": rule, **EVERY_STEP, "max_steps": 7}
    if method not in undisturbed:
        whole = make_trainer(folder="whole", **how)
        whole.train()
        whole.save_model(str(tmp_path / "whole"))
        undisturbed[method] = (tmp_path / "whole" / "adapter_model.safetensors").read_bytes(), whole.duals
    broken = make_trainer(folder="broken", callbacks=[_DieAt(step)], **how)
    with pytest.raises(KeyboardInterrupt):
        broken.train()
    checkpoint, _ = last_complete(tmp_path / "broken")
    assert checkpoint is not None
    assert checkpoint.name == f"checkpoint-{step - 1}"
    resumed = make_trainer(folder="broken", **how)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    resumed.save_model(str(tmp_path / "resumed"))
    weights = (tmp_path / "resumed" / "adapter_model.safetensors").read_bytes()
    assert (weights, resumed.duals) == undisturbed[method]


def test_resuming_from_the_last_checkpoint_makes_no_extra_step(make_trainer: Any, tmp_path: Path) -> None:
    # 7 steps end within an epoch of 4, where transformers would make an eighth.
    whole = make_trainer(max_steps=7, **EVERY_STEP)
    whole.train()
    again = make_trainer(max_steps=7, **EVERY_STEP)
    again.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-7"))
    assert again.state.global_step == 7
    assert same(weights(whole), weights(again))


def test_a_run_that_stopped_early_stays_stopped(make_trainer: Any, tmp_path: Path) -> None:
    how = {"num_train_epochs": 10, "learning_rate": 0.5, "optim": "sgd", "max_retain_drop": 0.05, **EVERY_STEP}
    whole = make_trainer("grad_diff", method_args={"retain_weight": 0.001}, **how)
    whole.train()
    steps = whole.state.global_step
    assert steps < 40
    again = make_trainer("grad_diff", method_args={"retain_weight": 0.001}, **how)
    again.train(resume_from_checkpoint=str(tmp_path / "run" / f"checkpoint-{steps}"))
    assert again.state.global_step == steps
    assert same(weights(whole), weights(again))


def test_log_lines_and_early_stopping_are_unaffected_by_a_resume(make_trainer: Any) -> None:
    # Cut off within the first of two windows of 4 steps.
    how = {"max_steps": 8, "logging_steps": 4, "max_retain_drop": 99.0, **EVERY_STEP}
    whole, broken = make_trainer(folder="a", **how), make_trainer(folder="b", callbacks=[_DieAt(4)], **how)
    whole.train()
    with pytest.raises(KeyboardInterrupt):
        broken.train()
    resumed = make_trainer(folder="b", **how)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.resumed_from.name == "checkpoint-3"
    keys = ("forget/npo", "retain/nll", "logps/forget", "logps/retain", "retain_drop")
    lines = [[{k: x[k] for k in keys} for x in t.state.log_history if "loss" in x] for t in (whole, resumed)]
    assert len(lines[0]) == 2
    assert lines[0] == lines[1]


@pytest.mark.parametrize("lost", ["optimizer.pt", "rng_state.pth", "objective_state.json", MARKER])
def test_a_checkpoint_without_a_file_is_refused_if_named_and_skipped_otherwise(
    make_trainer: Any, tmp_path: Path, lost: str
) -> None:
    make_trainer(max_steps=2, **EVERY_STEP).train()
    newest = tmp_path / "run" / "checkpoint-2"
    (newest / lost).unlink()
    trainer = make_trainer(max_steps=2, **EVERY_STEP)
    with pytest.raises(ValueError, match=rf"cannot resume from checkpoint '.*checkpoint-2': .*{lost}"):
        trainer.train(resume_from_checkpoint=str(newest))
    trainer.train(resume_from_checkpoint=True)
    assert trainer.resumed_from.name == "checkpoint-1"


def test_the_previous_checkpoint_is_deleted_only_when_the_newest_is_complete(make_trainer: Any, tmp_path: Path) -> None:
    trainer = make_trainer(max_steps=3, save_total_limit=1, **EVERY_STEP)
    before: list[Any] = []
    save = trainer.save_step_state
    trainer.save_step_state = lambda folder: before.append(last_complete(tmp_path / "run")[0]) or save(folder)  # type: ignore
    trainer.train()
    assert [found and found.name for found in before] == [None, "checkpoint-1", "checkpoint-2"]
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["checkpoint-3"]
