"""rmu and rmu_retain: the control vector, and zeros where they belong."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from llm_forget.objectives.rmu import direction, rmu
from llm_forget.objectives.rmu_retain import rmu_retain
from tests.support.objective_samples import H, V, draw, made_from, mask_of


def test_the_direction_is_a_unit_vector_fixed_by_its_seed() -> None:
    assert direction(64, 3).norm().item() == pytest.approx(1.0, rel=1e-6)
    assert torch.equal(direction(64, 3), direction(64, 3))
    assert not torch.equal(direction(64, 3), direction(64, 4))


def test_drawing_the_direction_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    direction(64, 0)
    assert torch.equal(torch.rand(3), expected)


def test_rmu_is_zero_at_the_control_vector_and_mean_square_elsewhere() -> None:
    target = 6.5 * direction(H, 0)
    policy = made_from(draw(0, 4, 6, V), target.expand(4, 6, H))
    assert not rmu(policy, coefficient=6.5).any()
    moved = replace(policy, hidden=target.expand(4, 6, H) + 0.5)
    torch.testing.assert_close(rmu(moved, coefficient=6.5), 0.25 * mask_of().float())


def test_rmu_with_coefficient_zero_shrinks_hidden_states() -> None:
    hidden = draw(1, 4, 6, H)
    values = rmu(made_from(draw(0, 4, 6, V), hidden), coefficient=0.0)
    torch.testing.assert_close(values, hidden.square().mean(-1) * mask_of())


def test_rmu_retain_at_the_reference_is_zero_with_zero_gradient() -> None:
    hidden = draw(1, 4, 6, H).requires_grad_()
    policy = made_from(draw(0, 4, 6, V), hidden)
    values = rmu_retain(policy, policy.detach())
    assert not values.any()
    assert not torch.autograd.grad(values.sum(), hidden)[0].any()


def test_rmu_retain_is_the_mean_square_distance() -> None:
    first, second = draw(1, 4, 6, H), draw(2, 4, 6, H)
    logits = draw(0, 4, 6, V)
    values = rmu_retain(made_from(logits, first), made_from(logits, second))
    torch.testing.assert_close(values, (first - second).square().mean(-1) * mask_of())
