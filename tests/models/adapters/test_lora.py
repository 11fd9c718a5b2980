"""The adapter that forgets, and the reference beneath it."""

import pytest
import torch

from llm_forget.models.adapters.files import load_adapter, save_adapter
from llm_forget.models.adapters.lora import (
    ADAPTER,
    attach_adapter,
    frozen_adapters,
    prepare_gradient_checkpointing,
    reference_mode,
)
from llm_forget.models.load import load_base
from tests.support.disturbed import IDS, disturb


def snapshot(model):
    return (
        {name: parameter.requires_grad for name, parameter in model.named_parameters()},
        {name: module.training for name, module in model.named_modules()},
        model.active_adapters,
    )


def test_only_the_new_adapter_trains(tiny_model, lora_args):
    model = attach_adapter(tiny_model(), lora_args())
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if ".unlearn." in name}
    linear = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in trained} == linear


def test_a_single_target_module_is_a_name_and_reloads(tiny_model, lora_args, tmp_path):
    model = attach_adapter(tiny_model(), lora_args(lora_target_modules=["q_proj"]))
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert len(trained) == 4
    assert all(".q_proj.lora_" in name for name in trained)
    disturb(model)
    reloaded = load_adapter(tiny_model(), save_adapter(model, tmp_path / "adapter"))
    assert torch.equal(reloaded(IDS).logits, model(IDS).logits)


def test_the_policy_starts_as_the_reference(tiny_model, lora_args):
    base = tiny_model()(IDS).logits
    assert torch.equal(attach_adapter(tiny_model(), lora_args()).train()(IDS).logits, base)


def test_reference_is_the_base_bit_for_bit(tiny_model, lora_args):
    base = tiny_model()(IDS).logits
    model = disturb(attach_adapter(tiny_model(), lora_args()))
    assert not torch.allclose(model(IDS).logits, base, atol=1e-2)
    with reference_mode(model), torch.no_grad():
        assert torch.equal(model(IDS).logits, base)


@pytest.mark.slow
def test_reference_of_a_stack_is_the_target(stacked, tiny_model, tmp_path):
    target = load_adapter(tiny_model(), tmp_path / "target", name="target")(IDS).logits
    with reference_mode(stacked):
        assert torch.equal(stacked(IDS).logits, target)
    assert not torch.allclose(stacked(IDS).logits, target, atol=1e-2)
    assert frozen_adapters(stacked) == ["target"]
    assert {n.split(".")[-2] for n, p in stacked.named_parameters() if p.requires_grad} == {ADAPTER}


@pytest.mark.slow
@pytest.mark.parametrize("training", [True, False])
def test_reference_mode_restores_everything(stacked, tiny_model, lora_args, training):
    for model in (stacked, attach_adapter(tiny_model(), lora_args())):
        model.train(training)
        model.base_model.model.model.layers[0].train(not training)
        next(p for n, p in model.named_parameters() if "lora_A.unlearn" in n).requires_grad_(False)
        before, logits = snapshot(model), model(IDS).logits
        with reference_mode(model):
            assert not any(module.training for module in model.modules())
            assert not any(parameter.requires_grad for parameter in model.parameters())
            inside = model(IDS).logits
            with reference_mode(model), torch.no_grad():
                assert torch.equal(model(IDS).logits, inside)
            assert torch.equal(model(IDS).logits, inside)
        assert snapshot(model) == before
        assert torch.equal(model(IDS).logits, logits)


@pytest.mark.slow
def test_reference_mode_restores_after_an_error(stacked):
    before = snapshot(stacked)
    with pytest.raises(KeyError), reference_mode(stacked):
        raise KeyError
    assert snapshot(stacked) == before


@pytest.mark.slow
def test_reference_mode_works_through_a_wrapper(stacked):
    wrapped = torch.nn.Sequential(stacked)
    with reference_mode(stacked):
        expected = stacked(IDS).logits
    with reference_mode(wrapped):
        assert torch.equal(wrapped(IDS).logits, expected)


def test_a_model_without_our_adapter_has_no_reference(tiny_model):
    with pytest.raises(ValueError, match="attach_adapter"), reference_mode(tiny_model()):
        pass


def test_a_second_unlearn_adapter_is_refused(tiny_model, lora_args):
    with pytest.raises(ValueError, match="already carries"):
        attach_adapter(attach_adapter(tiny_model(), lora_args()), lora_args())


@pytest.mark.slow
def test_one_model_in_memory(tiny_folder, lora_args):
    args = lora_args(tiny_folder)
    model = load_base(args)
    base = sum(parameter.numel() for parameter in model.parameters())
    model = attach_adapter(model, args)
    rank = args.lora_r
    linears = [m for m in model.modules() if m.__class__.__name__ == "Linear" and hasattr(m, "base_layer")]
    adapter = sum(rank * (m.in_features + m.out_features) for m in linears)
    assert sum(parameter.numel() for parameter in model.parameters()) == base + adapter
    storages = {parameter.data_ptr() for parameter in model.parameters()}
    with reference_mode(model), torch.no_grad():
        model(IDS)
        assert {parameter.data_ptr() for parameter in model.parameters()} == storages


@pytest.mark.slow
@pytest.mark.parametrize("stack", [False, True])
def test_every_lora_b_gets_a_gradient_under_checkpointing(stack, stacked, tiny_model, lora_args):
    model = stacked if stack else attach_adapter(tiny_model(), lora_args())
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            prepare_gradient_checkpointing(model)
            assert model.base_model.model.model.layers[0].gradient_checkpointing
        model.train().zero_grad()
        model(IDS, labels=IDS).loss.backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if "lora_B.unlearn" in n})
        assert gradients[-1]
        assert all(grad.abs().sum() > 0 for grad in gradients[-1].values())
    assert all(torch.allclose(gradients[0][name], gradients[1][name], atol=1e-7) for name in gradients[0])


@pytest.mark.slow
def test_reference_mode_between_forward_and_backward_changes_nothing(tiny_model, lora_args):
    base = tiny_model()(IDS).logits
    model = disturb(attach_adapter(tiny_model(), lora_args())).train()
    prepare_gradient_checkpointing(model)
    model(IDS, labels=IDS).loss.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    loss = model(IDS, labels=IDS).loss
    with reference_mode(model), torch.no_grad():
        assert torch.equal(model(IDS).logits, base)
    loss.backward()  # the checkpointed forward runs again here, with the adapter on
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
