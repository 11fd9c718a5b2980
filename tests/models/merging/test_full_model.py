"""A merge is believed only after its file was read back."""

import json

import pytest
import torch

from llm_forget.core.errors import AdapterRefused
from llm_forget.models.adapters.files import save_adapter
from llm_forget.models.adapters.lora import attach_adapter
from llm_forget.models.digest import source_digest
from llm_forget.models.load import load_base
from llm_forget.models.merging import full_model
from llm_forget.models.merging.full_model import merge_adapter
from llm_forget.models.merging.merge_report import is_merged, verify_merged
from tests.support.disturbed import IDS, disturb


@pytest.fixture
def trained(tiny_folder, lora_args, tmp_path):
    args = lora_args(tiny_folder)
    model = disturb(attach_adapter(load_base(args), args))
    save_adapter(model, tmp_path / "adapter", base_digest=source_digest(str(tiny_folder)))
    return args, tmp_path / "adapter", model


@pytest.mark.slow
def test_the_merged_file_answers_as_the_adapter(trained, lora_args, tmp_path):
    args, adapter, model = trained
    report = merge_adapter(args, adapter, tmp_path / "merged", probes=[[5, 6, 7], [8, 9]])
    assert report["n_probe_tokens"] == 5
    assert report["mean_kl_of_adapter"] > 1e-3 > abs(report["mean_kl"])
    assert json.loads((tmp_path / "merged" / "merge.json").read_text()) == report
    with torch.no_grad():
        merged = load_base(lora_args(tmp_path / "merged"))
        assert torch.allclose(merged(IDS).logits, model(IDS).logits, atol=report["tolerance"])
    assert (tmp_path / "merged" / "tokenizer.json").is_file()
    assert str(tmp_path) not in (tmp_path / "merged" / "config.json").read_text()


@pytest.mark.slow
def test_a_merged_folder_without_sources_is_verified_by_its_files(trained, tmp_path):
    args, adapter, _ = trained
    merge_adapter(args, adapter, tmp_path / "merged")
    assert is_merged(tmp_path / "merged")
    verify_merged(tmp_path / "merged")
    weights = tmp_path / "merged" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"#")
    with pytest.raises(AdapterRefused, match=r"is not the file that merge\.json says was written"):
        verify_merged(tmp_path / "merged")


@pytest.mark.slow
@pytest.mark.parametrize("adapted", ["lm_head", "embed_tokens"])
def test_an_adapter_on_one_of_two_tied_matrices_leaves_the_other(adapted, tiny_folder, tiny_model, lora_args, tmp_path):
    tiny_model(vocab_size=259, tie_word_embeddings=True).save_pretrained(tiny_folder)
    args = lora_args(tiny_folder, lora_target_modules=[adapted, "q_proj"])
    model = attach_adapter(load_base(args), args)
    torch.manual_seed(0)
    for parameter in filter(lambda p: p.requires_grad, model.parameters()):  # an embedding's are not called lora_B
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    save_adapter(model, tmp_path / "adapter")
    report = merge_adapter(args, tmp_path / "adapter", tmp_path / "merged")
    assert report["max_abs_logit_difference"] < 1e-5 < report["mean_kl_of_adapter"]


@pytest.mark.slow
def test_above_the_tolerance_nothing_is_left(trained, tmp_path):
    args, adapter, _ = trained
    with pytest.raises(ValueError, match=r"above the tolerance of 0\b.*nothing was written"):
        merge_adapter(args, adapter, tmp_path / "merged", tolerance=0.0)
    assert not (tmp_path / "merged").exists()
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.slow
def test_a_file_damaged_while_writing_is_refused(trained, tmp_path, monkeypatch):
    args, adapter, _ = trained
    read = full_model._read_back

    def read_damaged(*arguments):
        model = read(*arguments)
        model.get_output_embeddings().weight.data[7] += 0.1
        return model

    monkeypatch.setattr(full_model, "_read_back", read_damaged)
    with pytest.raises(ValueError, match="differs from the adapter"):
        merge_adapter(args, adapter, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_a_model_is_never_merged_over(trained, tiny_folder, tmp_path):
    args, adapter, _ = trained
    before = source_digest(str(tiny_folder))
    with pytest.raises(ValueError, match="never overwrites"):
        merge_adapter(args, adapter, tiny_folder)
    assert source_digest(str(tiny_folder)) == before


@pytest.mark.slow
def test_another_base_is_refused(trained, tiny_model, tiny_folder, tmp_path):
    args, adapter, _ = trained
    tiny_model(seed=1, vocab_size=259).save_pretrained(tiny_folder)
    with pytest.raises(ValueError, match="another base"):
        merge_adapter(args, adapter, tmp_path / "merged")


@pytest.mark.slow
def test_bfloat16_stays_bfloat16(tiny_folder, lora_args, tmp_path):
    args = lora_args(tiny_folder, dtype="bfloat16")
    save_adapter(disturb(attach_adapter(load_base(args), args)), tmp_path / "adapter")
    report = merge_adapter(args, tmp_path / "adapter", tmp_path / "merged")
    assert report["dtype"] == "bfloat16"
    assert load_base(lora_args(tmp_path / "merged", dtype="auto")).dtype == torch.bfloat16


def test_kl_of_a_distribution_with_itself_is_zero():
    logits = [torch.randn(5, 11)]
    assert full_model.compare(logits, logits) == {"max_abs_logit_difference": 0.0, "mean_kl": 0.0}


def test_a_divergence_is_never_below_zero():
    """In float32 the sum of next to nothing is, of some of these."""
    generator = torch.Generator().manual_seed(0)
    logits = [torch.randn(4, 997, generator=generator) for _ in range(40)]
    moved = [part + 1e-7 * torch.randn(part.shape, generator=generator) for part in logits]
    raw = [
        ((a := p.log_softmax(-1)).exp() * (a - q.log_softmax(-1))).sum(-1).mean()
        for p, q in zip(logits, moved, strict=True)
    ]
    assert min(raw) < 0
    assert all(full_model.compare([p], [q])["mean_kl"] >= 0 for p, q in zip(logits, moved, strict=True))
