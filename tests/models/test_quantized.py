"""4 and 8 bit: they load, train, save, and merge into the weights the adapter was trained on."""

import json

import pytest
import torch

from llm_forget.models.adapters.files import load_adapter, save_adapter
from llm_forget.models.adapters.lora import attach_adapter, quantization_of, reference_mode
from llm_forget.models.digest import source_digest
from llm_forget.models.load import load_base, load_tokenizer
from llm_forget.models.merging.full_model import merge_adapter
from tests.support.disturbed import IDS, disturb

bitsandbytes = pytest.importorskip("bitsandbytes")

NF4 = {"load_in_4bit": True}
NESTED = {"load_in_4bit": True, "use_bnb_nested_quant": True}
INT8 = {"load_in_8bit": True}


@pytest.fixture
def base(tmp_path, tiny_model, tiny_tokenizer):
    """A tiny model whose linear layers are a multiple of the 4-bit block of 64 weights."""
    folder = tmp_path / "base"
    tiny_model(vocab_size=len(tiny_tokenizer), hidden_size=64, intermediate_size=128).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("how", [NF4, NESTED, INT8], ids=["nf4", "nested", "int8"])
def test_a_quantised_base_trains_saves_and_merges_exactly(base, how, lora_args, tmp_path):
    args = lora_args(base, **how)
    model = attach_adapter(load_base(args), args)
    kinds = (bitsandbytes.nn.Linear4bit, bitsandbytes.nn.Linear8bitLt)
    assert any(isinstance(module, kinds) for module in model.modules())
    with reference_mode(model), torch.no_grad():
        before = model(IDS).logits
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model.train()
    for _ in range(2):
        (-model(IDS, labels=IDS).loss).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    assert all(p.abs().sum() > 0 for name, p in model.named_parameters() if "lora_B" in name)
    with reference_mode(model), torch.no_grad():
        assert torch.equal(model(IDS).logits, before), "the base must be what it was"

    save_adapter(model, tmp_path / "adapter", base_digest=source_digest(str(base)))
    manifest = json.loads((tmp_path / "adapter" / "manifest.json").read_text())
    assert manifest["quantization"] == quantization_of(model)
    assert manifest["quantization"].items() >= how.items()
    with torch.no_grad():
        again = load_adapter(load_base(args), tmp_path / "adapter")
        assert torch.equal(again(IDS).logits, model(IDS).logits)

    # The arguments need not say how the base was quantised: the manifest knows.
    report = merge_adapter(lora_args(base), tmp_path / "adapter", tmp_path / "merged")
    assert report["max_abs_logit_difference"] <= report["tolerance"] < 1e-2
    as_trained = report["as_trained"]["max_abs_logit_difference"]
    assert as_trained <= (report["tolerance"] if "load_in_4bit" in how else 0.1)
    merged = load_base(lora_args(tmp_path / "merged"))
    assert quantization_of(merged) is None
    with torch.no_grad():
        assert torch.allclose(merged(IDS).logits, model(IDS).logits, atol=max(as_trained, 1e-5) * 2)


@pytest.mark.slow
def test_the_original_base_is_a_switch_and_another_function(base, lora_args, tmp_path):
    args = lora_args(base, **NF4)
    save_adapter(disturb(attach_adapter(load_base(args), args)), tmp_path / "adapter")
    onto = {
        precision: merge_adapter(lora_args(base), tmp_path / "adapter", tmp_path / precision, base_precision=precision)
        for precision in ("trained", "original")
    }
    assert onto["original"]["as_trained"]["mean_kl"] > 100 * abs(onto["trained"]["as_trained"]["mean_kl"])
    assert onto["original"]["max_abs_logit_difference"] <= onto["original"]["tolerance"]


@pytest.mark.slow
def test_a_look_without_gradient_does_not_repack_4_bit_weights(base, lora_args):
    model = load_base(lora_args(base, **NF4))
    layer = next(module for module in model.modules() if isinstance(module, bitsandbytes.nn.Linear4bit))
    before = layer.weight.data.clone()
    with torch.no_grad():
        logits = model(IDS).logits
    assert torch.equal(layer.weight.data, before)
    assert torch.allclose(model.dequantize(dtype=torch.float32)(IDS).logits, logits, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["builtin:demo-llama"])
def test_a_model_without_a_folder_can_be_quantised(name, lora_args):
    model = load_base(lora_args(name, **NF4))
    assert quantization_of(model)["bnb_4bit_quant_type"] == "nf4"
    assert model.get_memory_footprint() < load_base(lora_args(name)).get_memory_footprint() / 2


@pytest.mark.slow
@pytest.mark.parametrize("how", [NF4, INT8], ids=["nf4", "int8"])
def test_a_folder_of_packed_weights_is_the_model_that_was_packed(base, how, lora_args, tmp_path):
    packed = tmp_path / "packed"
    load_base(lora_args(base, **how)).save_pretrained(packed)
    load_tokenizer(lora_args(base)).save_pretrained(packed)
    assert "quantization_config" in json.loads((packed / "config.json").read_text())
    losses = []
    for args in (lora_args(base, **how), lora_args(packed)):  # asked for, and found in the folder
        torch.manual_seed(0)
        model = disturb(attach_adapter(load_base(args), args), scale=0.1)
        model.eval()
        with torch.no_grad():
            model(IDS)  # on some CPUs this would repack 4-bit weights, which then give no gradient
        loss = model(IDS, labels=IDS).loss
        loss.backward()
        norm = sum(p.grad.square().sum() for p in model.parameters() if p.grad is not None).sqrt()
        losses.append([loss.item(), norm.item()])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    save_adapter(model, tmp_path / "adapter", base_digest=source_digest(str(packed)))
    report = merge_adapter(lora_args(packed), tmp_path / "adapter", tmp_path / "merged")
    assert report["max_abs_logit_difference"] <= report["tolerance"] < 1e-2
    assert quantization_of(load_base(lora_args(tmp_path / "merged"))) is None
    with pytest.raises(ValueError, match="holds its weights in 4 or 8 bit only"):
        merge_adapter(lora_args(packed), tmp_path / "adapter", tmp_path / "other", base_precision="original")
    assert not (tmp_path / "other").exists()
