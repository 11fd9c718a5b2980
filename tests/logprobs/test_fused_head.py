"""Log-probs from hidden states by blocks of logits are those of the whole logits, in value and gradient."""

import pytest
import torch
from torch.nn.functional import linear

from llm_forget.logprobs import fused_head
from llm_forget.logprobs.fused_head import head_logprobs
from llm_forget.logprobs.logprobs import token_logprobs

N, H, V = 37, 24, 301


def drawn(dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Values as large as those of a trained model: some tokens are nearly certain."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(N, H, generator=generator), torch.randn(V, H, generator=generator)
    labels = torch.randint(V, (N,), generator=generator)
    hidden[: N // 2] = 2 * weight[labels[: N // 2]]
    bias = torch.randn(V, generator=generator)
    slope = torch.randn(N, generator=generator)
    return {k: v.to(dtype) for k, v in {"hidden": hidden, "weight": weight, "bias": bias, "slope": slope}.items()} | {
        "labels": labels
    }


def plain(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return token_logprobs(linear(hidden, weight, bias), labels)


def exact(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return linear(hidden, weight, bias).log_softmax(-1).gather(-1, labels[:, None]).squeeze(-1)


def found(compute, given: dict[str, torch.Tensor], trained: bool) -> list[torch.Tensor]:
    """Values and the gradients of a weighted sum of them."""
    hidden = given["hidden"].clone().requires_grad_()
    head = [given[name].clone().requires_grad_(trained) for name in ("weight", "bias")]
    values = compute(hidden, *head, given["labels"])
    (values * given["slope"]).sum().backward()
    return [values.detach(), hidden.grad, *(part.grad for part in head if trained)]


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("block", [1, 5, N, 1000])
def test_values_and_gradients_are_no_worse_than_those_of_whole_logits(monkeypatch, block, trained) -> None:
    monkeypatch.setattr(fused_head, "BLOCK_ON_CPU", block * V)
    truth = found(exact, drawn(torch.float64), trained)
    ours, theirs = found(head_logprobs, drawn(), trained), found(plain, drawn(), trained)
    assert len(ours) == len(theirs) == (4 if trained else 2)
    for mine, other, true in zip(ours, theirs, truth, strict=True):
        allowed = 2 * float((other.double() - true).abs().max()) + 1e-6 * float(true.abs().max())
        assert float((mine.double() - true).abs().max()) <= allowed


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("block", [1, 8])
def test_bfloat16_is_no_worse_than_whole_logits(monkeypatch, trained, block) -> None:
    monkeypatch.setattr(fused_head, "BLOCK_ON_CPU", block * V)
    rounded = drawn(torch.bfloat16)
    truth = found(exact, {k: v.double() if k != "labels" else v for k, v in rounded.items()}, trained)
    ours, theirs = found(head_logprobs, rounded, trained), found(plain, rounded, trained)
    for mine, other, true in zip(ours, theirs, truth, strict=True):
        errors = [float((x.double() - true).norm() / true.norm()) for x in (mine, other)]
        assert errors[0] <= 1.1 * errors[1] + 1e-7


@pytest.mark.parametrize("trained", [False, True])
def test_float16_keeps_gradients_of_nearly_certain_tokens_under_a_loss_scale(monkeypatch, trained) -> None:
    monkeypatch.setattr(fused_head, "BLOCK_ON_CPU", 8 * V)
    given = drawn()
    # About 1e-5 nats for each: what is left over of such a token's logits is too small for float16 as it is.
    own = given["weight"][given["labels"]]
    given["hidden"] = 30 * own / own.square().sum(-1, keepdim=True)
    given["slope"] = torch.full((N,), 2.0**12)
    rounded = {k: v.half() if k in ("hidden", "weight", "bias") else v for k, v in given.items()}
    rounded["bias"].zero_()
    truth = found(exact, {k: v.double() if k != "labels" else v for k, v in rounded.items()}, trained)
    assert -1e-4 < float(truth[0].median()) < -1e-6
    ours, theirs = found(head_logprobs, rounded, trained), found(plain, rounded, trained)
    for mine, other, true in zip(ours[1:], theirs[1:], truth[1:], strict=True):
        errors = [float((x.double() - true).norm() / true.norm()) for x in (mine, other)]
        assert errors[0] <= 1.1 * errors[1] + 1e-7


def test_under_autocast_it_computes_in_the_lower_precision_and_gradients_keep_theirs() -> None:
    given = drawn()
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = found(head_logprobs, given, False), found(plain, given, False)
    assert ours[0].dtype == torch.float32
    assert ours[1].dtype == torch.float32
    assert torch.allclose(ours[0], theirs[0], atol=1e-3, rtol=1e-3)
    assert torch.allclose(ours[1], theirs[1], atol=0.05, rtol=0.02)


def test_without_gradient_nothing_is_kept() -> None:
    given = drawn()
    with torch.no_grad():
        values = head_logprobs(given["hidden"], given["weight"], None, given["labels"])
    assert values.grad_fn is None
    assert torch.allclose(values, token_logprobs(given["hidden"] @ given["weight"].T, given["labels"]), atol=1e-5)


@pytest.mark.parametrize("trained", [False, True])
def test_no_tensor_is_larger_than_a_block_or_the_head(monkeypatch, trained) -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                self.elements = max(self.elements, out.numel())
            return out

    monkeypatch.setattr(fused_head, "BLOCK_ON_CPU", 4 * V)
    with Largest() as seen:
        found(head_logprobs, drawn(), trained)
    assert seen.elements <= max(4 * V, V * H)
    with Largest() as whole:
        found(plain, drawn(), trained)
    assert whole.elements == N * V
