"""Gradient norms are those of the merged model's weights, and the model is left as it was."""

import math

import pytest
import torch
from torch import nn

from llm_forget.evals.probes.gradients import base_weights, probe_gradients
from llm_forget.evals.probes.probes import TokenRow
from llm_forget.evals.records import RecordWriter, load_records


def token_row(name, length, prompt=3, answer=0, window=0):
    generator = torch.Generator().manual_seed(length)
    ids = torch.randint(3, 64, (length,), generator=generator).tolist()
    return TokenRow(name, answer, window, ids, [-100] * prompt + ids[prompt:])


ROWS = [token_row("a", 9), token_row("b", 14), token_row("c", 6)]


def measure(tmp_path, model, rows, name="gradients", **given):
    writer = RecordWriter(tmp_path / f"{name}.jsonl", "gradients", "k", list(dict.fromkeys(row.key for row in rows)))
    probe_gradients(model, rows, writer, **given)
    return {record.id: record.norms for record in writer.finish()}


def by_hand(model, row):
    """Mean over weights of the 2-norm of the gradient of transformers' own loss."""
    weights = list(model.parameters())
    ids, labels = torch.tensor([row.input_ids]), torch.tensor([row.labels])
    gradients = torch.autograd.grad(model(input_ids=ids, labels=labels).loss, weights)
    return sum(gradient.norm().item() for gradient in gradients) / len(weights)


def adapted(model, **given):
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, **given)
    return get_peft_model(model, config, adapter_name="unlearn")


def test_the_norm_is_that_of_the_gradient_of_the_mean_token_loss(tmp_path, tiny_model):
    model = tiny_model()
    found = measure(tmp_path, model, ROWS)
    for row in ROWS:
        assert found[row.id]["2"] == pytest.approx(by_hand(model, row), rel=1e-5)
        assert found[row.id]["inf"] <= found[row.id]["2"] <= found[row.id]["1"]


@pytest.mark.slow
@pytest.mark.parametrize("given", [{}, {"lora_dropout": 0.5}])
def test_an_adapted_model_has_the_gradient_of_the_merged_one(tmp_path, tiny_model, given):
    model = adapted(tiny_model(), **given)
    found = measure(tmp_path, model, ROWS, "adapted")
    merged = measure(tmp_path, model.merge_and_unload(), ROWS, "merged")
    for row in ROWS:
        assert found[row.id] == pytest.approx(merged[row.id], rel=1e-4)


@pytest.mark.slow
def test_adapter_weights_are_not_measured(tiny_model):
    plain = len(list(tiny_model().parameters()))
    assert len(base_weights(adapted(tiny_model()))) == plain
    assert len(base_weights(adapted(tiny_model(), use_dora=True))) == plain


def test_tied_weights_count_once(tmp_path, tiny_model):
    model = tiny_model(tie_word_embeddings=True)
    assert measure(tmp_path, model, ROWS)["a"]["2"] == pytest.approx(by_hand(model, ROWS[0]), rel=1e-5)


def test_windows_of_an_answer_add_up_to_one_gradient(tmp_path, tiny_model):
    # The same tokens predicted from the same context, in one window and in two of which the second looks back.
    whole = token_row("a", 12)
    first = TokenRow("a", 0, 0, whole.input_ids, [*whole.labels[:7], *[-100] * 5])
    second = TokenRow("a", 0, 1, whole.input_ids, [*[-100] * 7, *whole.labels[7:]])
    one = measure(tmp_path, tiny_model(), [whole], "one")
    two = measure(tmp_path, tiny_model(), [second, first], "two")
    assert two["a"] == pytest.approx(one["a"], rel=1e-5)


@pytest.mark.slow
def test_the_model_is_left_as_it_was(tmp_path, tiny_model):
    model = adapted(tiny_model()).train()
    model.base_model.model.lm_head.eval()
    lora = next(p for name, p in model.named_parameters() if "lora_B" in name)
    lora.grad = kept = torch.ones_like(lora)
    flags = [parameter.requires_grad for parameter in model.parameters()]
    modes = [module.training for module in model.modules()]
    with torch.inference_mode():
        measure(tmp_path, model, ROWS)
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert [module.training for module in model.modules()] == modes
    assert lora.grad is kept
    assert [p for p in model.parameters() if p.grad is not None and p is not lora] == []


def test_the_model_is_left_as_it_was_also_by_an_error(tmp_path, tiny_model):
    model = tiny_model()
    model.requires_grad_(False)
    with pytest.raises(IndexError):
        measure(tmp_path, model, [TokenRow("a", 0, 0, [5, 6, 9999], [-100, 6, 9999])])
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in model.parameters())


@pytest.mark.slow
def test_a_killed_probe_continues_with_what_is_missing(tmp_path, tiny_model):
    path = tmp_path / "gradients.jsonl"
    steps = []

    class Killed(Exception):
        pass

    def kill(count):
        steps.append(count)
        if len(steps) == 2:
            raise Killed

    with pytest.raises(Killed):
        measure(tmp_path, tiny_model(), ROWS, advance=kill)
    assert load_records(path) is None
    found = measure(tmp_path, tiny_model(), ROWS, advance=steps.append)
    assert steps == [1, 1, 1]
    assert found == measure(tmp_path, tiny_model(), ROWS, "again")


def test_an_answer_without_targets_is_nan(tmp_path, tiny_model):
    row = token_row("a", 5, prompt=5)
    assert all(math.isnan(norm) for norm in measure(tmp_path, tiny_model(), [row])["a"].values())


def test_quantised_weights_are_refused(tmp_path, tiny_model):
    model = tiny_model()
    layer = model.model.layers[0].mlp.down_proj
    layer.weight = nn.Parameter(layer.weight.data.to(torch.int8), requires_grad=False)
    with pytest.raises(ValueError, match=r"1 of \d+ weights of the model are quantised"):
        measure(tmp_path, model, ROWS)
