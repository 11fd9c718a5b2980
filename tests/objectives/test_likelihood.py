"""nll, ga, wga, satimp: limits on paper."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from llm_forget.logprobs.logprobs import Logprobs
from llm_forget.objectives.ga import ga
from llm_forget.objectives.nll import nll
from llm_forget.objectives.satimp import satimp
from llm_forget.objectives.wga import wga
from tests.support.objective_samples import V, draw, labels_of, made_from, mask_of


def of(probabilities: list[float]) -> Logprobs:
    values = torch.tensor([probabilities]).log()
    return Logprobs(values, torch.ones_like(values, dtype=torch.bool), torch.zeros_like(values, dtype=torch.long))


def test_mean_nll_is_the_cross_entropy_of_torch() -> None:
    logits = draw(0, 4, 6, V)
    mask = mask_of()
    expected = functional.cross_entropy(logits[mask], labels_of()[mask])
    torch.testing.assert_close(nll(made_from(logits)).sum() / mask.sum(), expected)


def test_ga_is_the_negative_of_nll() -> None:
    policy = made_from(draw(0, 4, 6, V))
    assert torch.equal(ga(policy), -nll(policy))


def test_wga_with_beta_zero_is_gradient_ascent() -> None:
    policy = made_from(draw(0, 4, 6, V))
    torch.testing.assert_close(wga(policy, beta=0.0), ga(policy))


def test_wga_of_known_probabilities() -> None:
    p = torch.tensor([0.5, 0.9])
    torch.testing.assert_close(wga(of([0.5, 0.9]), beta=2.0)[0], p**2 * p.log())


def test_wga_stops_pushing_what_is_forgotten() -> None:
    values = torch.tensor([[-40.0]], requires_grad=True)
    mask = torch.ones(1, 1, dtype=torch.bool)
    wga(Logprobs(values, mask, mask.long())).sum().backward()
    assert values.grad is not None
    assert values.grad.item() == pytest.approx(torch.tensor(-40.0).exp().item(), rel=1e-5, abs=0.0)


def test_satimp_with_beta2_zero_is_wga_and_with_both_zero_gradient_ascent() -> None:
    policy = made_from(draw(0, 4, 6, V))
    torch.testing.assert_close(satimp(policy, beta1=3.0, beta2=0.0), wga(policy, beta=3.0))
    torch.testing.assert_close(satimp(policy, beta1=0.0, beta2=0.0), ga(policy))


def test_satimp_of_known_probabilities() -> None:
    p = torch.tensor([0.25, 0.5, 0.999])
    expected = p**5 * (1 - p) * p.log()
    torch.testing.assert_close(satimp(of(p.tolist()))[0], expected, rtol=1e-4, atol=1e-9)


def test_satimp_leaves_a_certain_token_alone() -> None:
    values = torch.zeros(1, 1, requires_grad=True)
    mask = torch.ones(1, 1, dtype=torch.bool)
    satimp(Logprobs(values, mask, mask.long())).sum().backward()
    assert values.grad is not None
    assert values.grad.item() == 0.0


@pytest.mark.parametrize(
    ("term", "weight"),
    [(wga, lambda p: p), (satimp, lambda p: p**5 * (1 - p))],
    ids=["wga", "satimp"],
)
def test_the_weight_is_no_path_for_gradients(
    term: Callable[[Logprobs], Tensor], weight: Callable[[Tensor], Tensor]
) -> None:
    p = torch.tensor([[0.2, 0.6, 0.95]])
    values = p.log().requires_grad_()
    mask = torch.ones(1, 3, dtype=torch.bool)
    term(Logprobs(values, mask, mask.long())).sum().backward()
    torch.testing.assert_close(values.grad, weight(p))
