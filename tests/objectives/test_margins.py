"""hinge and margin_polish: values and gradients known on paper, on the margin of the gold token."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from llm_forget.logprobs.levels import levels_of
from llm_forget.logprobs.logprobs import Logprobs
from llm_forget.objectives._vocabulary import gold_margin
from llm_forget.objectives.hinge import hinge
from llm_forget.objectives.margin_polish import margin_polish
from tests.support.objective_samples import B, T, V, draw, from_logits, labels_of, made_from, mask_of


def with_margins(margins: list[float]) -> Tensor:
    """Logits ``[1, n, V]`` of a gold token 0 with these margins over the other ten tokens, which are equal."""
    logits = torch.zeros(1, len(margins), V)
    logits[0, :, 0] = torch.tensor(margins) + math.log(V - 1)
    return logits.requires_grad_()


def side_of(logits: Tensor) -> Logprobs:
    shape = logits.shape[:2]
    return from_logits(logits, torch.zeros(shape, dtype=torch.long), torch.ones(shape, dtype=torch.bool))


def hinge_at(logits: Tensor, **arguments: float) -> Tensor:
    return hinge(side_of(logits), **arguments)


def test_the_margin_is_the_log_odds_of_the_gold_token_among_itself_and_its_rivals() -> None:
    logits, labels = draw(0, 5, V), labels_of(0, 1, 5)[0]
    p = logits.softmax(-1).gather(-1, labels[:, None]).squeeze(-1)
    torch.testing.assert_close(gold_margin(logits, labels), (p / (1 - p)).log(), rtol=1e-4, atol=1e-5)


def test_only_the_best_rivals_count() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0, -50.0, -50.0]])
    expected = 1.0 - math.log(math.exp(3) + math.exp(2))
    assert gold_margin(logits, torch.tensor([0]), rivals=2).item() == pytest.approx(expected)
    assert gold_margin(logits, torch.tensor([0]), rivals=1).item() == pytest.approx(-2.0)


def test_the_margin_over_one_rival_is_that_of_the_levels() -> None:
    policy = made_from(draw(1, B, T, V))
    assert policy.logits is not None
    margins = gold_margin(policy.logits.flatten(0, 1), policy.labels.flatten(), rivals=1).view(B, T)
    means = (margins * policy.mask).sum(-1) / policy.counts()
    torch.testing.assert_close(means, levels_of(policy).margin)


def test_hinge_and_its_gradient_are_zero_below_the_level() -> None:
    tau = math.log(0.7 / 0.3)
    logits = with_margins([tau - 0.2501, tau - 5.0, -40.0])
    values = hinge_at(logits, rho=0.7, eta=0.25)
    values.sum().backward()
    assert not values.any()
    assert logits.grad is not None
    assert not logits.grad.any()


def test_hinge_rises_above_the_level_with_slope_one_over_eta() -> None:
    tau = math.log(0.2 / 0.8)
    logits = with_margins([tau, tau + 1.0, tau + 9.0])
    values = hinge_at(logits, rho=0.2, eta=0.5)
    torch.testing.assert_close(values[0], torch.tensor([1.0, 3.0, 19.0]), rtol=1e-5, atol=1e-5)
    values.sum().backward()
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad[0, :, 0], torch.full((3,), 2.0))
    torch.testing.assert_close(logits.grad[0, :, 1:], torch.full((3, V - 1), -2.0 / (V - 1)))


def test_hinge_without_rho_has_the_level_of_the_paper() -> None:
    policy = made_from(draw(2, B, T, V))
    torch.testing.assert_close(hinge(policy), hinge(policy, rho=0.7, eta=0.25), rtol=0, atol=0)


@pytest.mark.parametrize("arguments", [{"rho": 0.0}, {"rho": 1.0}, {"rho": 7.0}, {"eta": 0.0}, {"eta": -1.0}])
def test_a_level_that_no_margin_reaches_is_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="'hinge' needs rho between 0 and 1 and eta above 0"):
        hinge(made_from(draw(2, B, T, V)), **arguments)


def test_padding_positions_have_no_hinge() -> None:
    mask = mask_of()
    assert not hinge(made_from(draw(3, B, T, V)), rho=1e-6)[~mask].any()
    assert hinge(made_from(draw(3, B, T, V)), rho=1e-6)[mask].all()


@pytest.mark.parametrize("beta", [0.5, 1.0, 3.0])
def test_polishing_begins_with_half_the_slope_and_never_ends(beta: float) -> None:
    anchors = [2.0, -3.0, 0.0, 1.0]
    logits = with_margins([2.0, -3.0, 40.0, 0.0])
    values = margin_polish(side_of(logits), side_of(with_margins(anchors).detach()), beta=beta)
    below = math.log1p(math.exp(-beta)) / beta
    start = math.log(2) / beta
    torch.testing.assert_close(values[0], torch.tensor([start, start, 40.0, below]), rtol=1e-4, atol=1e-5)
    values.sum().backward()
    assert logits.grad is not None
    slopes = torch.tensor([0.5, 0.5, 1.0, 1 / (1 + math.exp(beta))])
    torch.testing.assert_close(logits.grad[0, :, 0], slopes, rtol=1e-4, atol=1e-5)


def test_polishing_with_a_large_beta_is_a_hinge_at_the_margin_of_the_reference() -> None:
    policy, reference = made_from(draw(4, B, T, V)), made_from(draw(5, B, T, V))
    assert policy.logits is not None
    assert reference.logits is not None
    margins = [gold_margin(side.logits.flatten(0, 1), policy.labels.flatten()) for side in (policy, reference)]
    expected = (margins[0] - margins[1]).relu().view(B, T) * policy.mask
    torch.testing.assert_close(margin_polish(policy, reference, beta=1e4), expected, rtol=1e-4, atol=1e-3)


def test_polishing_needs_a_positive_beta() -> None:
    with pytest.raises(ValueError, match="'margin_polish' needs beta above 0, not 0"):
        margin_polish(made_from(draw(4, B, T, V)), made_from(draw(5, B, T, V)), beta=0)
