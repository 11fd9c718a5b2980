"""npo, simnpo, dpo: limits on paper."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from llm_forget.logprobs.logprobs import Logprobs
from llm_forget.objectives.dpo import dpo
from llm_forget.objectives.ga import ga
from llm_forget.objectives.npo import npo
from llm_forget.objectives.simnpo import simnpo
from tests.support.objective_samples import V, draw, made_from, sides


def policy_and_leaf() -> tuple[Logprobs, Tensor]:
    logits = draw(0, 4, 6, V).requires_grad_()
    return made_from(logits), logits


def gradient(values: Tensor, leaf: Tensor) -> Tensor:
    return torch.autograd.grad(values.sum(), leaf, retain_graph=True)[0]


@pytest.mark.parametrize("beta", [0.05, 0.1, 0.5])
def test_npo_at_the_reference_is_gradient_ascent(beta: float) -> None:
    policy, leaf = policy_and_leaf()
    values = npo(policy, policy.detach(), beta=beta)
    torch.testing.assert_close(values, torch.full((4,), 2 / beta * math.log(2)))
    policy_again, leaf_again = policy_and_leaf()
    torch.testing.assert_close(gradient(values, leaf), gradient(ga(policy_again), leaf_again))


def test_npo_with_beta_to_zero_is_gradient_ascent_far_from_the_reference() -> None:
    policy, leaf = policy_and_leaf()
    reference = made_from(draw(9, 4, 6, V))
    found = gradient(npo(policy, reference, beta=1e-6), leaf)
    torch.testing.assert_close(found, gradient(ga(policy), leaf), rtol=1e-3, atol=1e-5)


def test_npo_fades_once_the_policy_has_left_the_reference() -> None:
    values = torch.tensor([[-300.0]], requires_grad=True)
    mask = torch.ones(1, 1, dtype=torch.bool)
    policy = Logprobs(values, mask, mask.long())
    loss = npo(policy, Logprobs(torch.zeros(1, 1), mask, mask.long()), beta=0.1)
    loss.sum().backward()
    weight = 2 * math.exp(-30) / (1 + math.exp(-30))
    assert values.grad is not None
    assert values.grad.item() == pytest.approx(weight, rel=1e-5)
    assert loss.item() == pytest.approx(2 / 0.1 * math.log1p(math.exp(-30)), rel=1e-4)


def test_npo_gradient_is_gradient_ascent_times_the_papers_weight() -> None:
    """2 p^beta / (p^beta + p_ref^beta), row by row."""
    policy, leaf = policy_and_leaf()
    reference, beta = made_from(draw(9, 4, 6, V)), 0.3
    ours, theirs = (beta * side.sums().detach().double() for side in (policy, reference))
    weight = 2 * ours.exp() / (ours.exp() + theirs.exp())
    expected = gradient(ga(policy) * weight.float()[:, None], leaf)
    torch.testing.assert_close(gradient(npo(policy, reference, beta=beta), leaf), expected)


def test_simnpo_of_a_known_sequence() -> None:
    mask = torch.tensor([[True, True, True, False]])
    policy = Logprobs(torch.tensor([[-1.0, -2.0, -3.0, -50.0]]), mask, mask.long())
    expected = -2 / 2.5 * math.log(1 / (1 + math.exp(-2.5 * (2.0 - 0.5))))
    assert simnpo(policy, beta=2.5, delta=0.5).item() == pytest.approx(expected, rel=1e-6)


def test_simnpo_with_beta_to_zero_is_gradient_ascent_on_the_mean() -> None:
    policy, leaf = policy_and_leaf()
    expected = gradient(ga(policy) / policy.counts()[:, None], leaf)
    torch.testing.assert_close(gradient(simnpo(policy, beta=1e-4), leaf), expected, rtol=1e-3, atol=1e-5)


def test_simnpo_does_not_depend_on_length_at_equal_loss_per_token() -> None:
    mask = torch.tensor([[True, False, False], [True, True, True]])
    policy = Logprobs(torch.full((2, 3), -0.7), mask, mask.long())
    short, long = simnpo(policy).tolist()
    assert short == pytest.approx(long)


def test_dpo_at_the_reference_is_log_two() -> None:
    inputs, _ = sides()
    values = dpo(inputs["policy"], inputs["policy"], inputs["alternate"], inputs["alternate"], beta=0.2)
    torch.testing.assert_close(values, torch.full((4,), 2 / 0.2 * math.log(2)))


def test_dpo_with_an_unmoved_alternate_is_npo() -> None:
    inputs, _ = sides()
    values = dpo(inputs["policy"], inputs["reference"], inputs["alternate"], inputs["alternate"])
    torch.testing.assert_close(values, npo(inputs["policy"], inputs["reference"]))


def test_dpo_of_known_ratios() -> None:
    mask = torch.ones(1, 1, dtype=torch.bool)
    zero = Logprobs(torch.zeros(1, 1), mask, mask.long())
    policy, alternate = replace(zero, values=torch.tensor([[-3.0]])), replace(zero, values=torch.tensor([[-1.0]]))
    expected = 2 / 0.5 * math.log1p(math.exp(-0.5 * (-1.0 + 3.0)))
    assert dpo(policy, zero, alternate, zero, beta=0.5).item() == pytest.approx(expected, rel=1e-6)


def test_dpo_at_the_reference_raises_the_alternate_as_much_as_it_lowers_the_answer() -> None:
    inputs, leaves = sides(needs_grad=True)
    frozen = {name: side.detach() for name, side in inputs.items()}
    values = dpo(inputs["policy"], frozen["policy"], inputs["alternate"], frozen["alternate"])
    answer, other = leaves["policy.logits"], leaves["alternate.logits"]
    lowered, raised = gradient(values, answer), gradient(values, other)
    torch.testing.assert_close(lowered, gradient(inputs["policy"].sums(), answer))
    torch.testing.assert_close(raised, gradient(-inputs["alternate"].sums(), other))


@pytest.mark.parametrize("term", [npo, simnpo, dpo])
def test_a_beta_that_is_not_positive_is_refused(term: Callable[..., Tensor]) -> None:
    inputs, _ = sides()
    with pytest.raises(ValueError, match=f"objective '{term.__name__}' needs beta above 0, not 0"):
        term(*list(inputs.values())[: 1 if term is simnpo else 2 if term is npo else 4], beta=0)
