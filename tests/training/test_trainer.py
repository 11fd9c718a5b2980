"""The trainer: rows, loss, memory and files of an optimiser step."""

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from llm_forget.logprobs.logprobs import forward_logprobs
from llm_forget.models.adapters.lora import reference_mode
from llm_forget.training.trainer import UnlearnTrainer

pytestmark = pytest.mark.slow


def adapter(trainer: UnlearnTrainer) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}


def furthest(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[k] - b[k]).abs().max()) for k in a)


def losses(trainer: UnlearnTrainer) -> list[float]:
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


def test_the_loss_of_a_step_equals_the_objective_computed_manually(
    make_trainer: Any, splits: Any, tiny_tokenizer: Any
) -> None:
    trainer = make_trainer("npo", batch=7, method_args={"beta": 0.3, "retain_weight": 2.0}, max_steps=2)
    before = trainer.model
    seen: list[Any] = []
    step = trainer.training_step
    trainer.training_step = lambda m, b, n=None: seen.append(b) or step(m, b, n)  # type: ignore[method-assign]
    trainer.train()
    with torch.no_grad(), reference_mode(before):
        head = before.get_output_embeddings()
        both = {k: forward_logprobs(before, seen[0][k], head=head) for k in ("forget", "retain")}
    # At the reference NPO is (2/beta) ln 2 for every row, and retain is the mean over its tokens.
    nll = -both["retain"].values.sum() / both["retain"].mask.sum()
    expected = 2 / 0.3 * torch.log(torch.tensor(2.0)) + 2.0 * nll
    assert losses(trainer)[0] == pytest.approx(float(expected), rel=1e-5)
    assert trainer.state.log_history[0]["forget/npo"] == pytest.approx(2 / 0.3 * 0.693147, rel=1e-5)
    assert trainer.state.log_history[0]["logps/retain"] == pytest.approx(-float(nll), rel=1e-5)
    assert losses(trainer)[1] < losses(trainer)[0]


@pytest.mark.parametrize("method", ["npo", "grad_diff", "simnpo", "npo_kl", "rmu", "idk_dpo", "undial", "pdu", "ce_u"])
def test_micro_batches_do_not_change_the_trained_weights(make_trainer: Any, method: str) -> None:
    runs = {}
    for batch, accumulate in ((6, 1), (3, 2), (2, 3)):
        trainer = make_trainer(method, batch=batch, accumulate=accumulate, optim="sgd", learning_rate=1e-2)
        start = adapter(trainer)
        trainer.train()
        runs[batch] = adapter(trainer)
    assert furthest(runs[6], start) > 1e-6, "nothing was learned, so nothing was compared"
    assert furthest(runs[6], runs[3]) < 1e-6
    assert furthest(runs[6], runs[2]) < 1e-6


@pytest.mark.parametrize("rule", ["sum", "pcgrad", "gru", "sago", "sam"])
def test_gradient_rules_do_not_depend_on_micro_batches(make_trainer: Any, rule: str) -> None:
    runs = []
    for batch, accumulate in ((6, 1), (2, 3)):
        trainer = make_trainer("grad_diff", batch=batch, accumulate=accumulate, gradient=rule, optim="sgd")
        trainer.train()
        runs.append(adapter(trainer))
    assert furthest(*runs) < 1e-5


def test_the_rule_sum_is_one_backward_pass(make_trainer: Any) -> None:
    plain, ruled = make_trainer("npo"), make_trainer("npo", gradient="sum")
    plain.train()
    ruled.train()
    assert furthest(adapter(plain), adapter(ruled)) < 1e-5
    assert losses(plain) == pytest.approx(losses(ruled), rel=1e-5)


def test_rules_differ_where_gradients_conflict(make_trainer: Any) -> None:
    runs = {}
    for rule in ("sum", "pcgrad", "gru", "sago", "sam"):
        trainer = make_trainer("grad_diff", gradient=rule, optim="sgd", learning_rate=0.1)
        trainer.train()
        runs[rule] = adapter(trainer)
    for rule in ("pcgrad", "gru", "sago", "sam"):
        assert furthest(runs["sum"], runs[rule]) > 1e-5, rule


class _AtStepEnd(TrainerCallback):
    def __init__(self, look: Any) -> None:
        self.look = look

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.look()


@pytest.mark.parametrize("method", ["npo", "npo_kl"])
def test_one_model_is_in_memory_and_each_step_has_one_forward_pass(make_trainer: Any, method: str) -> None:
    def alive() -> int:
        gc.collect()
        return sum(found.numel() for found in gc.get_objects() if type(found) is torch.nn.Parameter)

    before = alive()
    trainer = make_trainer(method, max_steps=2)
    one = sum(p.numel() for p in trainer.model.parameters())
    calls, weights = [], []
    trainer.model.get_base_model().model.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    trainer.add_callback(_AtStepEnd(lambda: weights.append(alive() - before)))
    trainer.train()
    assert weights == [one, one], "no second copy of the weights, wherever it may be kept"
    assert calls.count(True) == 2, "one policy pass for forget and retain together in each of two steps"


def test_logits_exist_only_where_a_target_is_predicted(make_trainer: Any) -> None:
    trainer = make_trainer("npo", batch=7, max_steps=1)
    shapes, targets = [], []
    step = trainer.training_step

    def watch(model: Any, batch: Any, counts: Any = None) -> Any:
        targets.append(sum(int((part["labels"][:, 1:] != -100).sum()) for part in batch.values()))
        trainer.model.get_output_embeddings().register_forward_hook(lambda m, i, out: shapes.append(tuple(out.shape)))
        return step(model, batch, counts)

    trainer.training_step = watch  # type: ignore[method-assign]
    trainer.train()
    assert shapes[0][:2] == (1, targets[0])


def test_a_loss_that_is_not_finite_names_term_step_and_rows(make_trainer: Any) -> None:
    trainer = make_trainer("npo", batch=2, max_steps=3)
    with torch.no_grad():
        for name, parameter in trainer.model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(float("nan"))
    with pytest.raises(
        FloatingPointError, match=r"term 'forget/npo' is not finite at step 1, in a batch with rows f-\d, f-\d"
    ):
        trainer.train()


def test_training_stops_when_retain_rows_lose_too_much_log_prob(make_trainer: Any) -> None:
    watched = make_trainer("grad_diff", num_train_epochs=40, learning_rate=0.5, optim="sgd", max_retain_drop=0.05,
                           method_args={"retain_weight": 0.001})  # fmt: skip
    watched.train()
    assert watched.state.global_step < 80
    last = [line for line in watched.state.log_history if "retain_drop" in line]
    assert last[-1]["retain_drop"] > 0.05
    assert all(line["retain_drop"] <= 0.05 for line in last[:-1])
    assert abs(last[0]["retain_drop"]) < 1e-5, "policy and reference agree before the first update"


def test_early_stopping_without_retain_rows_or_log_lines_is_refused(make_trainer: Any) -> None:
    with pytest.raises(ValueError, match="no term of this objective uses them"):
        make_trainer("grad_ascent", max_retain_drop=0.1)
    with pytest.raises(ValueError, match="logging_strategy is 'no'"):
        make_trainer("npo", max_retain_drop=0.1, logging_strategy="no")
    with pytest.raises(ValueError, match=r"every 10 steps \(logging_steps\), but this run has 2"):
        make_trainer("npo", max_retain_drop=0.1, logging_steps=10, max_steps=2).train()


def test_a_tokenizer_without_padding_and_a_model_without_a_head_are_refused(
    make_trainer: Any, tiny_tokenizer: Any, tiny_model: Any
) -> None:
    headless = tiny_model(vocab_size=len(tiny_tokenizer)).model
    with pytest.raises(ValueError, match="LlamaModel has no output embeddings"):
        make_trainer("grad_ascent", lora=False, model=headless)
    padding, tiny_tokenizer.pad_token = tiny_tokenizer.pad_token, None
    try:
        with pytest.raises(ValueError, match="the tokenizer has no pad token"):
            make_trainer("npo")
    finally:
        tiny_tokenizer.pad_token = padding


def test_dual_variables_follow_the_constraint(make_trainer: Any) -> None:
    trainer = make_trainer("pdu", max_steps=1, method_args={"initial": 2.0, "epsilon": 0.5, "step_size": 0.25})
    trainer.train()
    value = trainer.state.log_history[0]["retain/nll"]
    assert trainer.duals == {"retain/nll": pytest.approx(2.0 + 0.25 * (value - 0.5))}


def test_full_fine_tuning_works_if_reference_log_probs_suffice(make_trainer: Any) -> None:
    trainer = make_trainer("npo", lora=False, learning_rate=1e-3)
    trainer.train()
    assert losses(trainer)[-1] < losses(trainer)[0]
    with pytest.raises(ValueError, match="needs the reference in every step"):
        make_trainer("npo_kl", lora=False)


def test_an_epoch_contains_every_forget_row_once(make_trainer: Any) -> None:
    trainer = make_trainer("npo", batch=3, num_train_epochs=2)
    seen: list[list[int]] = []
    step = trainer.training_step
    trainer.training_step = lambda m, b, n=None: seen.append(b["forget"]["index"].tolist()) or step(m, b, n)  # type: ignore
    trainer.train()
    assert trainer.state.global_step == 6
    epochs = [sorted(i for batch in seen[e : e + 3] for i in batch if i >= 0) for e in (0, 3)]
    assert epochs == [list(range(7))] * 2


def test_a_checkpoint_contains_only_the_adapter_and_no_pickled_arguments(make_trainer: Any, tmp_path: Path) -> None:
    trainer = make_trainer("npo", save_strategy="steps", save_steps=1, max_steps=1)
    trainer.train()
    folder = tmp_path / "run" / "checkpoint-1"
    assert not (folder / "training_args.bin").exists()
    assert all("lora_" in name for name in load_file(folder / "adapter_model.safetensors"))
