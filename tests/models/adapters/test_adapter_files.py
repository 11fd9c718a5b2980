"""Adapters on disk: whole, exact, and refused when anything about them changed."""

import json

import pytest
import torch

from llm_forget.core.errors import AdapterRefused
from llm_forget.models.adapters.files import disk_errors, load_adapter, load_adapter_weights, save_adapter
from llm_forget.models.adapters.logit_fingerprint import effect_of
from llm_forget.models.adapters.lora import attach_adapter
from tests.support.disturbed import IDS, disturb


@pytest.fixture
def saved(tiny_model, lora_args, tmp_path):
    model = disturb(attach_adapter(tiny_model(), lora_args()))
    folder = save_adapter(
        model, tmp_path / "adapter", base_digest="sha256:base", base_name="org/base", extra={"step": 3}
    )
    return folder, model(IDS).logits


@pytest.mark.slow
def test_an_adapter_comes_back_bit_for_bit(saved, tiny_model):
    folder, logits = saved
    model = load_adapter(tiny_model(), folder, base_digest="sha256:base")
    assert torch.equal(model(IDS).logits, logits)
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.slow
def test_plain_peft_loads_it(saved, tiny_model):
    from peft import PeftModel

    folder, logits = saved
    assert torch.equal(PeftModel.from_pretrained(tiny_model(), folder)(IDS).logits, logits)


def test_a_folder_holds_three_files_and_no_local_path(tiny_folder, lora_args, tmp_path):
    from llm_forget.models.load import load_base

    args = lora_args(tiny_folder)
    folder = save_adapter(attach_adapter(load_base(args), args), tmp_path / "adapter")
    assert {path.name for path in folder.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "manifest.json",
    }
    assert str(tmp_path) not in (folder / "adapter_config.json").read_text() + (folder / "manifest.json").read_text()
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == "tiny"


@pytest.mark.slow
def test_the_same_adapter_gives_the_same_bytes(saved, tiny_model, lora_args, tmp_path):
    folder, _ = saved
    again = disturb(attach_adapter(tiny_model(), lora_args()))
    load_adapter_weights(again, folder)
    save_adapter(again, tmp_path / "again", base_digest="sha256:base", base_name="org/base", extra={"step": 3})
    for path in folder.iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.slow
def test_a_stack_saves_the_upper_adapter_and_names_the_lower(stacked, tiny_model, tmp_path):
    folder = save_adapter(stacked, tmp_path / "upper")
    manifest = json.loads((folder / "manifest.json").read_text())
    assert [entry["name"] for entry in manifest["beneath"]] == ["target"]
    target = load_adapter(tiny_model(), tmp_path / "target", name="target")
    assert torch.equal(load_adapter(target, folder)(IDS).logits, stacked.eval()(IDS).logits)


@pytest.mark.slow
def test_a_gathered_state_dict_is_saved_as_given(saved, tiny_model, lora_args, tmp_path):
    folder, _ = saved
    source = attach_adapter(tiny_model(), lora_args())
    load_adapter_weights(source, folder)
    other = attach_adapter(tiny_model(), lora_args())
    save_adapter(other, tmp_path / "gathered", state_dict=source.state_dict())
    name = "adapter_model.safetensors"
    assert (tmp_path / "gathered" / name).read_bytes() == (folder / name).read_bytes()
    with pytest.raises(ValueError, match="gather"):
        save_adapter(other, tmp_path / "empty", state_dict={})
    assert not (tmp_path / "empty").exists()


@pytest.mark.slow
def test_a_gathered_state_dict_may_leave_frozen_adapters_out(stacked, tmp_path):
    trained = {key: value for key, value in stacked.state_dict().items() if ".unlearn." in key}
    whole, part = save_adapter(stacked, tmp_path / "a"), save_adapter(stacked, tmp_path / "b", state_dict=trained)
    name = "adapter_model.safetensors"
    assert (whole / name).read_bytes() == (part / name).read_bytes()
    assert json.loads((part / "manifest.json").read_text())["beneath"] == [{"name": "target", "digest": None}]


@pytest.mark.slow
def test_a_failed_save_leaves_the_old_adapter(saved, tiny_model, lora_args):
    folder, _ = saved
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    model = disturb(attach_adapter(tiny_model(), lora_args()))
    next(p for n, p in model.named_parameters() if "lora_B" in n).data[0, 0] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        save_adapter(model, folder)
    with pytest.raises(ValueError, match="manifest keys base"):
        save_adapter(disturb(attach_adapter(tiny_model(), lora_args())), folder, extra={"base": "x"})
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


@pytest.mark.slow
@pytest.mark.parametrize("stray", [False, True])
def test_saving_again_replaces_the_adapter_and_nothing_else(saved, tiny_model, lora_args, stray):
    folder, old = saved
    if stray:
        (folder / "run.json").write_text("x")
    model = disturb(attach_adapter(tiny_model(), lora_args()), scale=0.1)
    save_adapter(model, folder)
    found = load_adapter(tiny_model(), folder)(IDS).logits
    assert torch.equal(found, model(IDS).logits)
    assert not torch.equal(found, old)
    assert (folder / "run.json").exists() == stray
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


@pytest.mark.slow
def test_a_save_cut_off_among_other_files_is_refused(saved, tiny_model, lora_args, monkeypatch):
    import os

    folder, _ = saved
    (folder / "optimizer.pt").write_text("x")
    replace, done = os.replace, []

    def replace_once(source, target):
        if str(target).startswith(f"{folder}{os.sep}"):
            if done:
                raise OSError("killed")
            done.append(target)
        replace(source, target)

    monkeypatch.setattr(os, "replace", replace_once)
    with pytest.raises(OSError, match="killed"):
        save_adapter(disturb(attach_adapter(tiny_model(), lora_args()), scale=0.1), folder)
    with pytest.raises(ValueError, match="is not what"):
        load_adapter(tiny_model(), folder)


@pytest.mark.parametrize("content", ["[]", '{"name": "of another program"}'])
def test_a_manifest_of_another_program_is_named(saved, tiny_model, content):
    (saved[0] / "manifest.json").write_text(content)
    with pytest.raises(AdapterRefused, match=r"manifest\.json' is not a JSON object|has no manifest\.json of this"):
        load_adapter(tiny_model(), saved[0])


def test_a_broken_configuration_is_named(saved, tiny_model):
    (saved[0] / "manifest.json").unlink()
    (saved[0] / "adapter_config.json").write_text('{"peft_type": ')
    with pytest.raises(AdapterRefused, match=r"adapter_config\.json' is not valid JSON"):
        load_adapter(tiny_model(), saved[0], trust=True)


def test_another_base_is_refused(saved, tiny_model):
    with pytest.raises(ValueError, match="another base"):
        load_adapter(tiny_model(), saved[0], base_digest="sha256:other")


def test_digests_see_every_bit_of_a_bfloat16_tensor():
    from llm_forget.models.tensor_digests import tensors_digest

    one, two = torch.ones(3, dtype=torch.bfloat16), torch.ones(3, dtype=torch.bfloat16)
    assert tensors_digest({"a": one}) == tensors_digest({"a": two})
    two[2] = 1.0078125  # the next bfloat16
    assert tensors_digest({"a": one}) != tensors_digest({"a": two})
    assert tensors_digest({"a": one}) != tensors_digest({"b": one})


@pytest.mark.slow
def test_measuring_the_effect_leaves_the_model_and_its_random_numbers_as_they_were(tiny_model, lora_args):
    model = disturb(attach_adapter(tiny_model(), lora_args(lora_dropout=0.5)))
    model.train()
    torch.manual_seed(3)
    expected = model(IDS).logits
    torch.manual_seed(3)
    effect = effect_of(model)
    assert effect == effect_of(model)
    assert torch.equal(model(IDS).logits, expected)
    assert all(parameter.requires_grad == ("lora_" in name) for name, parameter in model.named_parameters())
    assert len(effect["samples"]) == 64
    assert effect["max_abs"] >= max(map(abs, effect["samples"])) > 0


@pytest.mark.parametrize(
    ("raised", "seen"),
    [
        (Exception("File too large (os error 27)"), OSError),  # tokenizers
        (Exception("something else"), Exception),
        (ValueError("File too large (os error 27)"), ValueError),
    ],
)
def test_only_errors_of_the_disk_become_such(raised, seen, tmp_path):
    with pytest.raises(seen) as caught, disk_errors(tmp_path):
        raise raised
    assert type(caught.value) is seen
    assert seen is not OSError or caught.value.errno == 27


@pytest.mark.slow
def test_a_disk_that_is_full_is_told_by_its_number(saved, tiny_model, lora_args, monkeypatch):
    import errno

    from safetensors import SafetensorError

    def no_room(*_, **__):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    folder, _ = saved
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr("safetensors.torch.save_file", no_room)
    with pytest.raises(OSError, match="No space left") as caught:
        save_adapter(disturb(attach_adapter(tiny_model(), lora_args())), folder)
    assert caught.value.errno == errno.ENOSPC
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
