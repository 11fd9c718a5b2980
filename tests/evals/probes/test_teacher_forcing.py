"""What rows begin with in common goes through a model once, and no number changes."""

import pytest
import torch

from llm_forget.evals.probes.teacher_forcing import forward_with_logits, per_row, vocabulary_moments
from llm_forget.logprobs.fast_paths import find_shortcuts
from llm_forget.logprobs.logprobs import forward_logprobs
from llm_forget.logprobs.packing import pack
from tests.logprobs.test_fast_paths import NEITHER, ROWS, batch, model  # noqa: F401
from tests.models.test_architectures import folder  # noqa: F401


@pytest.mark.slow
def test_every_architecture_gives_the_same_logits_when_prefixes_are_shared(model, request) -> None:  # noqa: F811
    name = request.node.callspec.params["folder"]
    given = batch()
    forward, shared = forward_with_logits(model)
    assert shared == (name not in NEITHER)
    plain, found = forward_logprobs(model, given, head=model.get_output_embeddings(), logits=True), forward(given)
    assert torch.equal(found.mask, plain.mask)
    assert torch.equal(found.labels, plain.labels)
    torch.testing.assert_close(found.values, plain.values, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.logits, plain.logits, atol=1e-5, rtol=1e-5)


def test_a_common_beginning_stands_in_the_packed_row_once() -> None:
    inputs, place = pack(batch(), shared=True)
    own = [*ROWS[0], 30, 31, 32, 40, 41]  # the second row is part of the first, and 5 begins the last row too
    assert inputs["input_ids"][0].tolist() == own
    assert inputs["position_ids"][0].tolist() == [*range(11), 7, 8, 9, 1, 2]
    again = inputs["input_ids"][0][place]
    assert [row[: len(ids)].tolist() for row, ids in zip(again, ROWS, strict=True)] == ROWS


def test_a_token_after_other_beginnings_is_another_token() -> None:
    """Same place, same id, but the row above differs before it."""
    inputs, _ = pack(batch([[5, 6, 7], [5, 8, 7], [5, 8, 7, 9]]), shared=True)
    assert inputs["input_ids"][0].tolist() == [5, 6, 7, 8, 7, 9]


def test_padding_is_not_taken_for_a_token_in_common() -> None:
    inputs, place = pack(batch([[5, 0, 0], [5]]), shared=True)  # 0 pads, and is a token of the first row
    assert inputs["input_ids"][0].tolist() == [5, 0, 0]
    assert place.tolist() == [[0, 1, 2], [0, 0, 0]]


def test_a_model_in_which_neighbours_mix_does_not_share(tiny_model) -> None:
    made = tiny_model()
    assert find_shortcuts(made, made).shared
    layer = made.model.layers[0].mlp
    made.model.layers[0].mlp = torch.nn.Sequential(layer, Mixing())
    assert not find_shortcuts(made, made).packed
    assert not forward_with_logits(made)[1]


class Mixing(torch.nn.Module):
    """Adds to each token what stands before it, as a convolution would."""

    def forward(self, states):
        return states + 100 * states.roll(1, dims=1)


def test_hooks_are_gone_after_an_error(tiny_model) -> None:
    made = tiny_model()
    head = made.get_output_embeddings()
    how = vars(find_shortcuts(made, made))
    before = len(head._forward_pre_hooks)
    with pytest.raises(IndexError):
        forward_logprobs(made, batch([[5, 999], [5]], prompt=1), head=head, **how)
    assert len(head._forward_pre_hooks) == before
    assert "forward" not in vars(head)


def test_numbers_do_not_depend_on_the_size_of_a_block(tiny_model, monkeypatch) -> None:
    made = tiny_model()
    logps = forward_logprobs(made, batch(), head=made.get_output_embeddings(), logits=True)
    whole = per_row(logps)
    monkeypatch.setattr("llm_forget.evals.probes.teacher_forcing.BLOCK_ON_CPU", 64 * 2)  # two tokens at a time
    for one, other in zip(whole, per_row(logps), strict=True):
        for left, right in zip(one, other, strict=True):
            assert left.shape == right.shape
            torch.testing.assert_close(left, right)


def test_the_stored_tokens_are_the_most_likely_and_the_gold_one_and_all_mass_is_counted(tiny_model) -> None:
    made = tiny_model()
    logps = forward_logprobs(made, batch(), head=made.get_output_embeddings(), logits=True)
    for i, (values, *_, tokens, stored, rest) in enumerate(per_row(logps, 4)):
        n = len(values)
        whole, labels = logps.logits[i, :n].log_softmax(-1), logps.labels[i, :n]
        torch.testing.assert_close(stored, whole.gather(-1, tokens.long()))
        torch.testing.assert_close(stored.exp().sum(-1) + rest.exp(), torch.ones(n))
        assert (tokens == labels[:, None]).any(-1).all()
        assert (tokens[:, 1:] == whole.argmax(-1)[:, None]).any(-1).logical_or(tokens[:, 0] == whole.argmax(-1)).all()
        assert tokens.shape[-1] == stored.shape[-1] == 4


def test_a_token_that_is_masked_out_leaves_finite_moments() -> None:
    mean, variance = vocabulary_moments(torch.tensor([[0.0, 0.0, -torch.inf], [40.0, -40.0, -torch.inf]]))
    torch.testing.assert_close(mean, torch.tensor([-torch.log(torch.tensor(2.0)), 0.0]))
    torch.testing.assert_close(variance, torch.zeros(2), atol=1e-6, rtol=0)
