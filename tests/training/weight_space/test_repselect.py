"""RepSelect: the direction on paper, the bound on retain rows, and the adapter that holds the step."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from llm_forget.core.errors import ConfigError, ModelError
from llm_forget.models.adapters.lora import ADAPTER, attach_adapter, reference_mode
from llm_forget.training.weight_space.repselect import WeightStep, mlp_targets, repselect, within_bound, without_shared


def product(factors: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    left, sizes, right = factors
    return (left * sizes) @ right


def turned(sizes: list[float], rows: int, columns: int) -> Tensor:
    """A matrix ``[rows, columns]`` with these singular values."""
    generator = torch.Generator().manual_seed(0)
    left, _ = torch.linalg.qr(torch.randn(rows, rows, generator=generator))
    right, _ = torch.linalg.qr(torch.randn(columns, columns, generator=generator))
    count = len(sizes)
    return left[:, :count] @ torch.diag(torch.tensor(sizes)) @ right[:count]


def test_strong_directions_are_divided_on_both_sides_and_weak_ones_stay() -> None:
    gradient = turned([8.0, 4.0, 2.0, 1.0], 5, 6)
    left, sizes, right = torch.linalg.svd(gradient, full_matrices=False)
    by_hand = gradient
    shares = 1 - sizes[1] / sizes[:2]  # s_q / s_i of a projection stays
    by_hand = by_hand - (by_hand @ right[:2].T * shares) @ right[:2]
    by_hand = by_hand - left[:, :2] @ (shares[:, None] * (left[:, :2].T @ by_hand))
    factors = without_shared(gradient, 2)
    torch.testing.assert_close(factors[1][:4], torch.tensor([4.0, 2.0, 2.0, 1.0]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(product(factors), by_hand, rtol=1e-4, atol=1e-4)


def test_one_component_changes_nothing() -> None:
    gradient = turned([8.0, 4.0, 2.0, 1.0], 5, 6)
    torch.testing.assert_close(product(without_shared(gradient, 1)), gradient, rtol=1e-4, atol=1e-5)


def test_directions_that_a_gradient_does_not_have_are_not_made_up() -> None:
    gradient = turned([8.0, 4.0], 6, 5)
    torch.testing.assert_close(
        without_shared(gradient, 512)[1][:3], torch.tensor([4.0, 2.0, 0.0]), rtol=1e-4, atol=1e-5
    )
    assert not product(without_shared(torch.zeros(3, 4), 512)).any()


def test_the_step_is_the_largest_within_the_bound() -> None:
    tries: list[float] = []

    def divergence_at(step: float) -> float:
        tries.append(step)
        return 3 * step**2

    step = within_bound(divergence_at, 0.01, 1e-4)
    assert divergence_at(step) <= 0.01
    assert step == pytest.approx(math.sqrt(0.01 / 3), rel=0.01)
    assert len(tries) < 25


def test_a_divergence_that_is_not_a_number_is_beyond_the_bound() -> None:
    step = within_bound(lambda step: step if step < 1 else math.nan, 100.0, 0.3)
    assert 0.9 < step < 1
    with pytest.raises(ModelError, match="beyond max_kl"):
        within_bound(lambda _: math.nan, 0.01, 0.3)


@pytest.fixture
def make_step(tiny_model: Any, tiny_tokenizer: Any, lora_args: Any, splits: Any) -> Any:
    """``make_step(rank)``: a tiny model with an untrained adapter of this rank on its MLP weights."""

    def make(rank: int) -> WeightStep:
        model = tiny_model(vocab_size=len(tiny_tokenizer))
        args = mlp_targets(model, lora_args(lora_r=rank, lora_alpha=2 * rank, lora_target_modules=None))
        assert args.lora_target_modules == ["mlp.down_proj", "mlp.gate_proj", "mlp.up_proj"]
        model = attach_adapter(model, args)
        return WeightStep(model, splits["forget"], splits["retain"], 4, int(tiny_tokenizer.pad_token_id))

    return make


@pytest.mark.parametrize(
    ("kind", "targets"),
    [
        ("qwen2_moe", ["shared_expert.down_proj", "shared_expert.gate_proj", "shared_expert.up_proj"]),
        ("jetmoe", None),  # its experts are one tensor, which LoRA on linear layers does not reach
    ],
)
def test_a_router_of_experts_is_no_target(kind: str, targets: list[str] | None, lora_args: Any) -> None:
    sizes = {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, vocab_size=50, **sizes))
    args = lora_args(lora_target_modules=None)
    if targets is None:
        with pytest.raises(ConfigError, match="name them in lora_target_modules"):
            mlp_targets(model, args)
    else:
        assert mlp_targets(model, args).lora_target_modules == targets


def changes(edit: WeightStep) -> dict[str, Tensor]:
    return {name: layer.get_delta_weight(ADAPTER) for name, layer in edit.adapted().items()}


def gradients(edit: WeightStep) -> dict[str, Tensor]:
    """Gradients of the forget loss, summed over all rows in one batch, at weights without an adapter."""
    weights = {name: layer.get_base_layer().weight.requires_grad_() for name, layer in edit.adapted().items()}
    (batch,) = WeightStep(edit.model, edit.forget, edit.retain, 99, edit.pad_id).batches(edit.forget)
    with reference_mode(edit.model):
        loss = -edit.forward(batch).sums().sum()
    for weight in weights.values():
        weight.requires_grad_()
    return dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True))


@pytest.mark.slow
def test_the_forget_loss_rises_within_the_bound_on_retain_rows(make_step: Any) -> None:
    edit = make_step(8)
    report = repselect(edit, components=4, max_kl=1e-3, adversary_rate=0.01)
    losses = report["forget_nll"]
    assert losses["adversary"] < losses["before"] < losses["after"]
    assert 0.9e-3 < report["kl"] <= 1e-3


@pytest.mark.slow
def test_an_adapter_of_full_rank_is_the_step_and_a_smaller_one_its_best_approximation(make_step: Any) -> None:
    full, low = make_step(64), make_step(3)
    directions = {name: product(without_shared(value, 4)) for name, value in gradients(make_step(8)).items()}
    report = repselect(full, components=4, adversary_rate=0.0)
    assert report["rank_error"] == 0.0
    for name, change in changes(full).items():
        torch.testing.assert_close(change, report["step"] * directions[name], rtol=1e-3, atol=1e-6)
    report = repselect(low, components=4, adversary_rate=0.0)
    lost = whole = 0.0
    for name, change in changes(low).items():
        assert torch.linalg.matrix_rank(change) <= 3
        exact = report["step"] * directions[name]
        lost, whole = lost + float((exact - change).square().sum()), whole + float(exact.square().sum())
        expected = torch.linalg.svdvals(exact)[3:].square().sum()
        torch.testing.assert_close((exact - change).square().sum(), expected, rtol=1e-2, atol=1e-8)
    assert report["rank_error"] == pytest.approx(math.sqrt(lost / whole), rel=1e-2)
    assert 0 < report["rank_error"] < 1


@pytest.mark.parametrize("arguments", [{"components": 0}, {"max_kl": 0.0}, {"adversary_rate": -1.0}])
def test_values_out_of_range_are_refused(make_step: Any, arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="'repselect' needs components of 1 or more, max_kl above 0"):
        repselect(make_step(2), **arguments)
