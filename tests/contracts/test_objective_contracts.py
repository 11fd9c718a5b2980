"""What every objective must hold, whoever wrote it: found through the registry, so a new file is tested at once."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from llm_forget.core.ignore_label import IGNORE
from llm_forget.core.registry import REQUIRED, Entry
from llm_forget.logprobs.logprobs import Logprobs, decoder_layers, forward_logprobs
from llm_forget.objectives import OBJECTIVES
from llm_forget.objectives.methods import build_objective
from tests.support.objective_samples import COUNTS, sides

TERMS = [pytest.param(OBJECTIVES.get(name), id=name) for name in OBJECTIVES.names()]
every_term = pytest.mark.parametrize("term", TERMS)


def call(term: Entry, inputs: dict[str, Logprobs]) -> Tensor:
    return term.function(*(inputs[name] for name in term.inputs))


def rows(inputs: dict[str, Logprobs], start: int, stop: int) -> dict[str, Logprobs]:
    def rows(side: Logprobs) -> Logprobs:
        mask = side.mask[start:stop]
        width = int(mask.sum(-1).max()) if mask.numel() else 0  # columns that hold no target there are cut off
        return replace(side, **{k: v[start:stop, :width] for k, v in vars(side).items() if v is not None})

    return {name: rows(side) for name, side in inputs.items()}


def test_file_function_and_name_are_one_word() -> None:
    for term in OBJECTIVES:
        assert term.function.__module__ == f"llm_forget.objectives.{term.name}"


@every_term
def test_every_term_says_what_it_is_and_names_known_inputs(term: Entry) -> None:
    assert len((term.function.__doc__ or "").partition("\n")[0]) > 20
    assert term.inputs[0] == "policy"
    assert set(term.inputs) <= {"policy", "reference", "alternate", "alternate_reference", "teacher"}
    assert term.needs <= {"logits", "hidden_states"}
    assert not {"name", "weight"} & set(term.defaults)
    assert REQUIRED not in term.defaults.values()
    assert term.paper.startswith("arXiv:") or term.name == "nll"


@every_term
def test_a_term_returns_finite_values_per_row_or_per_token(term: Entry) -> None:
    inputs, _ = sides()
    values = call(term, inputs)
    mask = inputs["policy"].mask
    assert values.shape in (mask.shape, mask.shape[:1])
    assert values.dtype == torch.float32
    assert values.isfinite().all()
    assert values.abs().max() > 0
    if values.dim() == 2:
        assert not values[~mask].any()


@every_term
def test_a_row_depends_on_its_own_row_only(term: Entry) -> None:
    inputs, _ = sides()
    together = call(term, inputs)
    apart = [call(term, rows(inputs, i, i + 1)) for i in range(len(COUNTS))]
    for i, alone in enumerate(apart):
        expected = together[i] if together.dim() == 1 else together[i, : alone.shape[-1]]
        torch.testing.assert_close(alone[0], expected, rtol=1e-6, atol=1e-6)


@every_term
def test_the_gradient_of_a_row_stays_in_its_row(term: Entry) -> None:
    inputs, leaves = sides(needs_grad=True)
    call(term, inputs)[1].sum().backward()
    for leaf in leaves.values():
        if leaf.grad is not None:
            assert not leaf.grad[[0, 2, 3]].any()


@every_term
def test_micro_batches_add_up_to_the_batch(term: Entry) -> None:
    def gradient(cuts: tuple[int, ...]) -> tuple[Tensor, dict[str, Tensor]]:
        inputs, leaves = sides(needs_grad=True)
        parts = [call(term, rows(inputs, a, b)).sum() for a, b in itertools.pairwise(cuts)]
        whole = torch.stack(parts).sum()
        whole.backward()
        return whole.detach(), {k: v.grad for k, v in leaves.items() if v.grad is not None}

    whole, split = gradient((0, 4)), gradient((0, 1, 3, 4))
    torch.testing.assert_close(split, whole, rtol=1e-5, atol=1e-6)


GARBAGE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf, "large": 1e30}


@every_term
@pytest.mark.parametrize("garbage", GARBAGE)
def test_a_term_is_blind_to_masked_positions(term: Entry, garbage: str) -> None:
    """Value and gradient, whatever stands in values, labels, logits or hidden states where no target is."""
    found = []
    for fill in (None, GARBAGE[garbage]):
        inputs, leaves = sides(needs_grad=True)
        if fill is not None:
            inputs = {name: spoil(side, fill) for name, side in inputs.items()}
        values = call(term, inputs)
        values.sum().backward()
        found.append((values.detach(), {k: v.grad for k, v in leaves.items() if v.grad is not None}))
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0)


def spoil(side: Logprobs, fill: float) -> Logprobs:
    assert side.logits is not None
    assert side.hidden is not None
    empty = ~side.mask
    return replace(
        side,
        values=side.values.masked_fill(empty, fill),
        labels=side.labels.masked_fill(empty, 3),
        logits=side.logits.masked_fill(empty[..., None], fill),
        hidden=side.hidden.masked_fill(empty[..., None], fill),
    )


@every_term
def test_rows_without_targets_are_zero_and_harmless(term: Entry) -> None:
    """The last batch of an epoch is filled up with them."""
    inputs, leaves = sides(needs_grad=True, counts=(3, 0, 0, 2))
    inputs = {name: replace(side, mask=inputs["policy"].mask) for name, side in inputs.items()}
    values = call(term, inputs)
    assert not values[1:3].any()
    values.sum().backward()
    for leaf in leaves.values():
        if leaf.grad is not None:
            assert leaf.grad.isfinite().all()
            assert not leaf.grad[1:3].any()


@every_term
def test_a_batch_of_padding_rows_only_is_zero(term: Entry) -> None:
    inputs, _ = sides(counts=(0, 0, 0, 0))
    inputs = {name: replace(side, mask=torch.zeros_like(side.mask)) for name, side in inputs.items()}
    for width in (6, 0):
        cut = {name: cut_to(side, width) for name, side in inputs.items()}
        assert not call(term, cut).any()


def cut_to(side: Logprobs, width: int) -> Logprobs:
    return Logprobs(**{name: value[:, :width] for name, value in vars(side).items() if value is not None})


@every_term
def test_only_the_policy_learns(term: Entry) -> None:
    inputs, leaves = sides(needs_grad=True)
    call(term, inputs).sum().backward()
    learned = {name.partition(".")[0] for name, leaf in leaves.items() if leaf.grad is not None and leaf.grad.any()}
    assert learned == {"policy", "alternate"} & set(term.inputs)


@every_term
def test_a_term_runs_on_what_it_declared_and_on_no_more(term: Entry) -> None:
    inputs, _ = sides()
    dropped = {} if "logits" in term.needs else {"logits": None}
    dropped |= {} if "hidden_states" in term.needs else {"hidden": None}
    lean = {name: replace(side, **dropped) for name, side in inputs.items()}
    torch.testing.assert_close(call(term, lean), call(term, inputs), rtol=0, atol=0)
    if term.needs:
        bare = {name: replace(side, logits=None, hidden=None) for name, side in inputs.items()}
        with pytest.raises(ValueError, match="declare needs="):
            call(term, bare)


@every_term
def test_a_term_is_finite_when_the_model_is_certain(term: Entry) -> None:
    """Memorised to probability 1, and forgotten to log-probability -200, in value and in gradient."""
    for sign in (1, -1):
        inputs, leaves = sides(needs_grad=True)
        sharp = {}
        for name, side in inputs.items():
            assert side.logits is not None
            peak = nn.functional.one_hot(side.labels, side.logits.shape[-1]) * 200.0 * sign
            logits = side.logits * 0.01 + peak
            values = (logits.log_softmax(-1).gather(-1, side.labels[..., None]).squeeze(-1)) * side.mask
            sharp[name] = replace(side, logits=logits, values=values)
        values = call(term, sharp)
        values.sum().backward()
        assert values.isfinite().all()
        assert all(leaf.grad.isfinite().all() for leaf in leaves.values() if leaf.grad is not None)


# the mean of logits, which pdu flattens, does not exist where one is -inf
@pytest.mark.parametrize("term", [term for term in TERMS if term.id != "pdu"])
def test_a_vocabulary_entry_that_is_forbidden_gives_no_nan(term: Entry) -> None:
    inputs, leaves = sides(needs_grad=True)
    forbidden = {}
    for name, side in inputs.items():
        assert side.logits is not None
        never = torch.zeros(side.logits.shape[-1], dtype=torch.bool)
        never[-1] = True
        labels = side.labels.clamp(max=side.logits.shape[-1] - 2)
        forbidden[name] = replace(side, logits=side.logits.masked_fill(never, -math.inf), labels=labels)
    values = call(term, forbidden)
    values.sum().backward()
    assert values.isfinite().all()
    assert all(leaf.grad.isfinite().all() for leaf in leaves.values() if leaf.grad is not None)


@every_term
def test_a_term_takes_half_precision_logits_and_computes_in_float32(term: Entry) -> None:
    inputs, _ = sides()

    def low(side: Logprobs) -> Logprobs:
        assert side.logits is not None
        assert side.hidden is not None
        return replace(side, logits=side.logits.bfloat16(), hidden=side.hidden.bfloat16())

    def rounded(side: Logprobs) -> Logprobs:
        half = low(side)
        assert half.logits is not None
        assert half.hidden is not None
        return replace(half, logits=half.logits.float(), hidden=half.hidden.float())

    half = call(term, {name: low(side) for name, side in inputs.items()})
    assert half.dtype == torch.float32
    full = call(term, {name: rounded(side) for name, side in inputs.items()})
    torch.testing.assert_close(half, full, rtol=0, atol=0)


@every_term
def test_a_term_is_built_from_yaml_with_numbers_written_as_text(term: Entry) -> None:
    numbers = {k: f"{v:e}" for k, v in term.defaults.items() if isinstance(v, float)}
    document = yaml.safe_dump({"forget": {"name": term.name, "weight": "5e-1", **numbers}})
    objective = build_objective(objective=yaml.safe_load(document))
    (built,) = objective.terms
    assert (built.key, built.weight, built.arguments) == (f"forget/{term.name}", 0.5, term.defaults)
    assert build_objective(objective=yaml.safe_load(yaml.safe_dump(objective.to_dict()))) == objective
    with pytest.raises(ValueError, match=f"objective '{term.name}' has no parameter 'bet_'"):
        build_objective(objective={"forget": {"name": term.name, "bet_": 1}})


@pytest.fixture(scope="module")
def tiny() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        initializer_range=0.3,
        attn_implementation="eager",
    )
    return LlamaForCausalLM(config).eval()


def tokens(seed: int, side: str, lengths: tuple[int, ...], prompt: int, width: int) -> dict[str, Tensor]:
    """Rows of different lengths, padded left or right, with the same text either way."""
    generator = torch.Generator().manual_seed(seed)
    made: dict[str, list[Tensor]] = {"input_ids": [], "attention_mask": [], "labels": []}
    for length in lengths:
        text = torch.randint(4, 40, (length,), generator=generator)
        labels = text.clone()
        labels[:prompt] = IGNORE
        room = (width - length, 0) if side == "left" else (0, width - length)
        made["input_ids"].append(nn.functional.pad(text, room, value=3))
        made["attention_mask"].append(nn.functional.pad(torch.ones_like(text), room))
        made["labels"].append(nn.functional.pad(labels, room, value=IGNORE))
    return {name: torch.stack(values) for name, values in made.items()}


def through_model(term: Entry, model: nn.Module, batch_of: Callable[[int], dict[str, Tensor]]) -> tuple[Tensor, Any]:
    """Sum of the term on a model, and its gradient; the reference is the same model with noise on its logits."""
    layer = decoder_layers(model, 2)[0]

    def forward(seed: int) -> Logprobs:
        return forward_logprobs(model, batch_of(seed), head=model.get_output_embeddings(), logits=True, hidden=layer)

    inputs = {"policy": forward(0), "alternate": forward(1)}
    with torch.no_grad():
        inputs |= {
            name: replace(
                inputs[of],
                values=inputs[of].values * 0.5,
                logits=inputs[of].logits.flip(-1) * 0.5,
                hidden=inputs[of].hidden * 0.5,
            )
            for name, of in (("reference", "policy"), ("alternate_reference", "alternate"), ("teacher", "policy"))
        }
    model.zero_grad()
    value = call(term, inputs).sum()
    value.backward()
    return value.detach(), [p.grad.clone() if p.grad is not None else torch.zeros_like(p) for p in model.parameters()]


@every_term
def test_the_side_and_the_amount_of_padding_change_nothing(term: Entry, tiny: nn.Module) -> None:
    lengths = (9, 5, 12)
    expected = through_model(term, tiny, lambda seed: tokens(seed, "right", lengths, 3, 12))
    for side, width in (("right", 17), ("left", 12), ("left", 17)):
        found = through_model(term, tiny, lambda seed, s=side, w=width: tokens(seed, s, lengths, 3, w))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@every_term
def test_splitting_a_batch_through_the_model_changes_nothing(term: Entry, tiny: nn.Module) -> None:
    lengths = (9, 5, 12)
    value, gradient = through_model(term, tiny, lambda seed: tokens(seed, "right", lengths, 3, 12))

    def part(start: int, stop: int) -> tuple[Tensor, Any]:
        def cut(seed: int) -> dict[str, Tensor]:
            return {k: v[start:stop] for k, v in tokens(seed, "right", lengths, 3, 12).items()}

        return through_model(term, tiny, cut)

    parts = [part(0, 1), part(1, 3)]
    torch.testing.assert_close(parts[0][0] + parts[1][0], value, rtol=1e-4, atol=1e-4)
    added = [a + b for a, b in zip(parts[0][1], parts[1][1], strict=True)]
    torch.testing.assert_close(added, gradient, rtol=1e-4, atol=1e-4)


def test_another_number_is_no_slip_of_the_pen():
    from llm_forget.core.registry import did_you_mean

    assert did_you_mean("req-0009", ["req-0001"]) == "allowed: req-0001"
    assert did_you_mean("req-001", ["req-0001"]) == "did you mean 'req-0001'?"
    assert did_you_mean("rouge", ["rouge_1", "loss"]) == "did you mean 'rouge_1'?"
