"""Gradient rules against geometry, brute force and an independent implementation."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from llm_forget.objectives import gradient_rules
from llm_forget.objectives.gradient_rules import RULES, combine, dot, gru, pcgrad, perturbation, perturbed, sago
from llm_forget.training.gradient_combiner import GradientCombiner

SHAPES = ((3, 4), (5,), (2, 2, 2))


def draw(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in SHAPES]


def flat(gradient: list[Tensor]) -> Tensor:
    return torch.cat([g.flatten() for g in gradient])


def conflicting() -> list[tuple[list[Tensor], list[Tensor]]]:
    pairs = [(draw(a), draw(b)) for a, b in itertools.combinations(range(12), 2)]
    found = [(f, r) for f, r in pairs if dot(f, r) < 0]
    assert len(found) > 10
    return found


def test_all_rules_are_registered_under_their_names() -> None:
    assert RULES.names() == ["gru", "pcgrad", "sago", "sum"]


def test_sum_is_the_gradient_of_the_summed_loss() -> None:
    x = torch.randn(6, generator=torch.Generator().manual_seed(0), requires_grad=True)
    first, second = x.sin().sum(), (x**3).sum()
    both = torch.autograd.grad(first + second, [x], retain_graph=True)
    parts = [list(torch.autograd.grad(loss, [x], retain_graph=True)) for loss in (first, second)]
    torch.testing.assert_close(gradient_rules.sum(*parts), list(both))


def test_pcgrad_of_equal_tasks_agrees_with_torchjd() -> None:
    aggregation = pytest.importorskip("torchjd.aggregation", reason="torchjd is not installed: pip install torchjd")
    for forget, retain in [*conflicting(), (draw(0), draw(0))]:
        expected = aggregation.PCGrad()(torch.stack([flat(forget), flat(retain)]))
        torch.testing.assert_close(flat(pcgrad(forget, retain, both=True)), expected, rtol=1e-6, atol=1e-6)


def test_pcgrad_is_the_nearest_forget_gradient_that_does_not_oppose_retain() -> None:
    for forget, retain in conflicting():
        f, r = flat(forget).double(), flat(retain).double()
        update = flat(pcgrad(forget, retain)).double() - r
        assert abs(float(update @ r)) < 1e-5
        # any other point of the allowed half-space is farther from f
        generator = torch.Generator().manual_seed(1)
        others = f + torch.randn(200, f.numel(), generator=generator, dtype=torch.float64)
        allowed = others[others @ r >= 0]
        assert ((allowed - f).norm(dim=-1) >= (update - f).norm() - 1e-6).all()


@pytest.mark.parametrize("both", [False, True])
def test_pcgrad_without_conflict_is_sum(both: bool) -> None:
    forget, retain = draw(1), draw(2)
    if dot(forget, retain) < 0:
        forget = [-f for f in forget]
    torch.testing.assert_close(pcgrad(forget, retain, both=both), gradient_rules.sum(forget, retain), rtol=0, atol=0)


def test_pcgrad_of_opposed_gradients_is_the_retain_gradient() -> None:
    retain = draw(3)
    torch.testing.assert_close(pcgrad([-2 * r for r in retain], retain), retain)


def test_rules_survive_a_zero_retain_gradient() -> None:
    forget, zero = draw(4), [torch.zeros(shape) for shape in SHAPES]
    for name in RULES.names():
        torch.testing.assert_close(combine(name, forget, zero)[0], forget, rtol=0, atol=0)


def test_sago_takes_retain_where_signs_oppose_and_forget_elsewhere() -> None:
    forget = [torch.tensor([1.0, -1.0, 2.0, 0.0, 3.0])]
    retain = [torch.tensor([5.0, 5.0, -5.0, 5.0, 0.0])]
    assert sago(forget, retain)[0].tolist() == [1.0, 5.0, -5.0, 0.0, 3.0]


def test_sago_never_opposes_the_retain_gradient_in_any_coordinate() -> None:
    for forget, retain in conflicting():
        assert (flat(sago(forget, retain)) * flat(retain) >= 0).all()


def test_sago_is_closer_in_angle_to_retain_than_pcgrads_forget_part() -> None:
    def cosine(a: Tensor, b: Tensor) -> float:
        return float(a @ b / (a.norm() * b.norm()))

    for forget, retain in conflicting():
        r = flat(retain)
        assert cosine(flat(sago(forget, retain)), r) > cosine(flat(gradient_rules.without_conflict(forget, retain)), r)


def test_gru_with_gamma_one_leaves_pcgrads_forget_part() -> None:
    for forget, retain in conflicting():
        update, _ = gru(forget, retain, None, gamma=1.0)
        torch.testing.assert_close(flat(update), flat(pcgrad(forget, retain)) - flat(retain), rtol=1e-5, atol=1e-5)


def test_gru_follows_its_running_average_over_steps() -> None:
    gamma, average, state = 0.7, torch.zeros_like(flat(draw(0))), None
    for step in range(5):
        forget, retain = draw(step), draw(step + 20)
        average = gamma * flat(retain) + (1 - gamma) * average
        f = flat(forget)
        expected = f - (f @ average) / (average @ average) * average if f @ average < 0 else f
        update, state = combine("gru", forget, retain, state, {"gamma": gamma})
        torch.testing.assert_close(flat(update), expected, rtol=1e-5, atol=1e-6)
        assert state is not None
        torch.testing.assert_close(flat(state), average)


def test_a_rule_does_not_change_its_inputs() -> None:
    for name in RULES.names():
        forget, retain = conflicting()[0]
        before = flat(forget).clone(), flat(retain).clone()
        combine(name, forget, retain)
        assert torch.equal(flat(forget), before[0])
        assert torch.equal(flat(retain), before[1])


def test_rules_work_in_bfloat16_with_float32_angles() -> None:
    forget, retain = conflicting()[0]
    low = [g.bfloat16() for g in forget], [g.bfloat16() for g in retain]
    for name in RULES.names():
        update, _ = combine(name, *low)
        assert all(u.dtype == torch.bfloat16 for u in update)
        exact, _ = combine(name, *([g.float() for g in side] for side in low))
        torch.testing.assert_close(flat(update).float(), flat(exact), rtol=2e-2, atol=2e-2)


def test_an_unknown_rule_or_argument_is_refused_with_a_suggestion() -> None:
    with pytest.raises(ValueError, match="did you mean 'pcgrad'"):
        combine("pcgard", draw(0), draw(1))
    with pytest.raises(ValueError, match="did you mean 'gamma'"):
        combine("gru", draw(0), draw(1), None, {"gama": 0.5})


def test_perturbation_has_length_rho_in_the_direction_of_the_gradient() -> None:
    gradient = draw(5)
    step = perturbation(gradient, rho=0.03)
    assert float(flat(step).norm()) == pytest.approx(0.03, rel=1e-5)
    torch.testing.assert_close(flat(step) / 0.03, flat(gradient) / flat(gradient).norm())


def test_perturbation_of_a_zero_gradient_is_zero() -> None:
    assert flat(perturbation([torch.zeros(3)])).tolist() == [0.0, 0.0, 0.0]


def test_sam_gradient_of_a_quadratic_is_known_on_paper() -> None:
    # loss = a x^2 / 2: at x + rho sign(a x) the gradient is a x + rho |a| sign(x)
    x = torch.tensor([2.0], requires_grad=True)
    (gradient,) = torch.autograd.grad(3 * x.square().sum() / 2, [x])
    with perturbed([x], perturbation([gradient], rho=0.5)):
        (sharp,) = torch.autograd.grad(3 * x.square().sum() / 2, [x])
    assert sharp.item() == pytest.approx(3 * 2.0 + 3 * 0.5)


def test_perturbed_puts_parameters_back_bit_for_bit_even_after_an_error() -> None:
    parameters = [torch.nn.Parameter(g * 1e3) for g in draw(6)]
    before = flat(parameters).clone()

    def fail() -> None:
        with perturbed(parameters, perturbation(draw(7), rho=0.1)):
            assert not torch.equal(flat(parameters), before)
            raise KeyError("inside")

    with pytest.raises(KeyError):
        fail()
    assert torch.equal(flat(parameters), before)
    assert all(p.requires_grad for p in parameters)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_state_from_a_checkpoint_follows_the_gradients_to_their_device(tmp_path: Path, device: str) -> None:
    model = torch.nn.Linear(3, 2, device=device)
    combiner = GradientCombiner("gru")
    combiner.state = [torch.ones(p.shape) for p in model.parameters()]
    combiner.save(tmp_path)
    combiner.load(tmp_path)

    def losses(batch: Tensor) -> dict[str, Tensor]:
        return {"forget": model(batch).sum(), "retain": -model(batch).sum()}

    combiner.add(model, torch.ones(1, 3, device=device), losses)
    combiner.apply(model, losses, SimpleNamespace(num_processes=1))
    assert {tensor.device.type for tensor in combiner.state} == {device}
