"""kl, undial, ce_u, unilogit, ihl, pdu: limits on paper, and torch's own functions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from llm_forget.logprobs.logprobs import Logprobs
from llm_forget.objectives.ce_u import ce_u
from llm_forget.objectives.ihl import ihl
from llm_forget.objectives.kl import kl
from llm_forget.objectives.nll import nll
from llm_forget.objectives.pdu import pdu
from llm_forget.objectives.undial import undial
from llm_forget.objectives.unilogit import unilogit
from tests.support.objective_samples import V, draw, from_logits, labels_of, made_from, mask_of


def one(logits: list[float], label: int = 0) -> tuple[Logprobs, Tensor]:
    """One row with one target, and the leaf it was made from."""
    leaf = torch.tensor([[logits]], requires_grad=True)
    return from_logits(leaf, torch.tensor([[label]]), torch.ones(1, 1, dtype=torch.bool)), leaf


def gradient(values: Tensor, leaf: Tensor) -> Tensor:
    return torch.autograd.grad(values.sum(), leaf, retain_graph=True)[0]


def test_kl_of_a_distribution_with_itself_is_zero_with_zero_gradient() -> None:
    leaf = draw(0, 4, 6, V).requires_grad_()
    policy = made_from(leaf)
    values = kl(policy, policy.detach())
    assert not values.any()
    torch.testing.assert_close(gradient(values, leaf), torch.zeros_like(leaf), rtol=0, atol=1e-6)


def test_kl_is_torchs_with_the_reference_first() -> None:
    policy, reference, mask = made_from(draw(0, 4, 6, V)), made_from(draw(1, 4, 6, V)), mask_of()
    assert policy.logits is not None
    assert reference.logits is not None
    logs = [side.logits[mask].log_softmax(-1) for side in (policy, reference)]
    expected = functional.kl_div(*logs, reduction="none", log_target=True).sum(-1)
    torch.testing.assert_close(kl(policy, reference)[mask], expected)


def test_undial_with_beta_zero_differs_from_kl_by_the_entropy_of_the_reference() -> None:
    policy, reference, mask = made_from(draw(0, 4, 6, V)), made_from(draw(1, 4, 6, V)), mask_of()
    assert reference.logits is not None
    entropy = torch.distributions.Categorical(logits=reference.logits[mask]).entropy()
    difference = (undial(policy, reference, beta=0.0) - kl(policy, reference))[mask]
    torch.testing.assert_close(difference, entropy, rtol=1e-4, atol=1e-5)


def test_undial_is_torchs_cross_entropy_to_the_lowered_teacher() -> None:
    policy, reference, mask = made_from(draw(0, 4, 6, V)), made_from(draw(1, 4, 6, V)), mask_of()
    assert policy.logits is not None
    assert reference.logits is not None
    lowered = reference.logits - 3.0 * functional.one_hot(labels_of(), V)
    expected = functional.cross_entropy(policy.logits[mask], lowered[mask].softmax(-1), reduction="none")
    torch.testing.assert_close(undial(policy, reference, beta=3.0)[mask], expected)


def test_undial_with_a_large_beta_forbids_the_gold_token_as_ce_u_does() -> None:
    policy = made_from(draw(0, 4, 6, V))
    torch.testing.assert_close(undial(policy, policy.detach(), beta=1e4), ce_u(policy, skip=0))


def test_ce_u_gradient_is_policy_minus_target() -> None:
    policy, leaf = one([2.0, 1.0, 0.0, -1.0])
    others = torch.tensor([1.0, 0.0, -1.0]).softmax(-1)
    expected = leaf.detach()[0, 0].softmax(-1) - torch.cat([torch.zeros(1), others])
    torch.testing.assert_close(gradient(ce_u(policy, skip=0), leaf)[0, 0], expected)


def test_ce_u_of_a_certain_token_is_bounded_in_gradient_where_gradient_ascent_has_none_left() -> None:
    policy, leaf = one([60.0, 1.0, 1.0])
    assert ce_u(policy, skip=0).item() == pytest.approx(59.0, rel=1e-6)
    torch.testing.assert_close(gradient(ce_u(policy, skip=0), leaf)[0, 0], torch.tensor([1.0, -0.5, -0.5]))


def test_ce_u_skips_the_first_targets_of_each_row_only() -> None:
    policy = made_from(draw(0, 4, 6, V))
    everything = ce_u(policy, skip=0)
    for skip in (1, 2, 7):
        values = ce_u(policy, skip=skip)
        assert not values[:, :skip].any()
        assert torch.equal(values[:, skip:], everything[:, skip:])
    assert torch.equal(ce_u(policy), ce_u(policy, skip=1))


def test_unilogit_is_the_reverse_kl_to_the_uniform_gold_target() -> None:
    policy, _ = one([2.0, 1.0, 0.0, -1.0])
    assert policy.logits is not None
    p = policy.logits.detach()[0, 0].softmax(-1)
    q = p * (1 - 1 / 4) / (1 - p[0])
    q[0] = 1 / 4
    assert q.sum().item() == pytest.approx(1.0)
    assert unilogit(policy).item() == pytest.approx((p * (p / q).log()).sum().item(), rel=1e-5)


def test_unilogit_rests_when_the_gold_token_has_uniform_probability() -> None:
    gold = math.log((math.e**1.5 + math.e**-0.5 + 1.0) / 3)  # p(gold) = 1/4 of V = 4
    policy, leaf = one([gold, 1.5, -0.5, 0.0])
    assert policy.values.item() == pytest.approx(math.log(1 / 4), rel=1e-5)
    assert unilogit(policy).item() == pytest.approx(0.0, abs=1e-6)
    torch.testing.assert_close(gradient(unilogit(policy), leaf), torch.zeros(1, 1, 4), rtol=0, atol=1e-6)


def test_unilogit_of_a_certain_token_is_log_v() -> None:
    policy, _ = one([80.0, 0.0, 0.0, 0.0, 0.0])
    assert unilogit(policy).item() == pytest.approx(math.log(5), rel=1e-5)


def test_unilogit_does_not_depend_on_a_shift_of_all_logits() -> None:
    torch.testing.assert_close(unilogit(one([1.0, 2.0, 0.5])[0]), unilogit(one([11.0, 12.0, 10.5])[0]))


def test_ihl_runs_from_two_to_zero() -> None:
    assert ihl(one([50.0, 0.0, 0.0])[0]).item() == pytest.approx(2.0)
    assert ihl(one([0.0, 50.0, 0.0])[0]).item() == pytest.approx(0.0, abs=1e-6)
    assert ihl(one([0.0, 0.0, 0.0])[0]).item() == pytest.approx(1.0)


def test_ihl_raises_the_runner_up_and_lowers_the_gold_token() -> None:
    policy, leaf = one([1.0, 0.5, -2.0])
    p = leaf.detach()[0, 0].softmax(-1)
    jacobian = torch.diag(p) - torch.outer(p, p)
    torch.testing.assert_close(gradient(ihl(policy), leaf)[0, 0], jacobian[0] - jacobian[1])


def test_ihl_uses_the_best_of_the_others_when_the_gold_token_is_not_the_best() -> None:
    policy, _ = one([0.0, 2.0, 1.0], label=2)
    p = torch.tensor([0.0, 2.0, 1.0]).softmax(-1)
    assert ihl(policy).item() == pytest.approx(float(1 + p[2] - p[1]), rel=1e-6)


def test_pdu_is_zero_for_flat_logits_and_known_otherwise() -> None:
    assert pdu(one([3.0, 3.0, 3.0])[0]).item() == 0.0
    assert pdu(one([1.0, 4.0, -2.0])[0]).item() == pytest.approx(9.0)


def test_terms_on_logits_leave_nll_alone() -> None:
    """Reading logits must not write to them: the same log-probabilities serve several terms of one objective."""
    policy = made_from(draw(0, 4, 6, V))
    assert policy.logits is not None
    before = policy.logits.clone(), nll(policy)
    for term in (ce_u, ihl, unilogit, pdu):
        term(policy)
    undial(policy, policy)
    assert torch.equal(policy.logits, before[0])
    assert torch.equal(nll(policy), before[1])
