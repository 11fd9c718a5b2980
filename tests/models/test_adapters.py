"""Adapters on disk: whole, exact, and refused when anything about them changed."""

import json
import pickle

import pytest
import torch
from disturbed import IDS, disturb
from safetensors.torch import load_file, save_file

from llm_forget.models import adapters, attach_adapter, load_adapter, load_adapter_weights, save_adapter


@pytest.fixture
def saved(tiny_model, lora_args, tmp_path):
    model = disturb(attach_adapter(tiny_model(), lora_args()))
    folder = save_adapter(
        model, tmp_path / "adapter", base_digest="sha256:base", base_name="org/base", extra={"step": 3}
    )
    return folder, model(IDS).logits


def test_an_adapter_comes_back_bit_for_bit(saved, tiny_model):
    folder, logits = saved
    model = load_adapter(tiny_model(), folder, base_digest="sha256:base")
    assert torch.equal(model(IDS).logits, logits)
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_plain_peft_loads_it(saved, tiny_model):
    from peft import PeftModel

    folder, logits = saved
    assert torch.equal(PeftModel.from_pretrained(tiny_model(), folder)(IDS).logits, logits)


def test_a_folder_holds_three_files_and_no_local_path(tiny_folder, lora_args, tmp_path):
    from llm_forget.models import load_base

    args = lora_args(tiny_folder)
    folder = save_adapter(attach_adapter(load_base(args), args), tmp_path / "adapter")
    assert {path.name for path in folder.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "manifest.json",
    }
    assert str(tmp_path) not in (folder / "adapter_config.json").read_text() + (folder / "manifest.json").read_text()
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == "tiny"


def test_the_same_adapter_gives_the_same_bytes(saved, tiny_model, lora_args, tmp_path):
    folder, _ = saved
    again = disturb(attach_adapter(tiny_model(), lora_args()))
    load_adapter_weights(again, folder)
    save_adapter(again, tmp_path / "again", base_digest="sha256:base", base_name="org/base", extra={"step": 3})
    for path in folder.iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()


def test_a_stack_saves_the_upper_adapter_and_names_the_lower(stacked, tiny_model, tmp_path):
    folder = save_adapter(stacked, tmp_path / "upper")
    manifest = json.loads((folder / "manifest.json").read_text())
    assert [entry["name"] for entry in manifest["beneath"]] == ["target"]
    target = load_adapter(tiny_model(), tmp_path / "target", name="target")
    assert torch.equal(load_adapter(target, folder)(IDS).logits, stacked.eval()(IDS).logits)


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


def test_a_gathered_state_dict_may_leave_frozen_adapters_out(stacked, tmp_path):
    trained = {key: value for key, value in stacked.state_dict().items() if ".unlearn." in key}
    whole, part = save_adapter(stacked, tmp_path / "a"), save_adapter(stacked, tmp_path / "b", state_dict=trained)
    name = "adapter_model.safetensors"
    assert (whole / name).read_bytes() == (part / name).read_bytes()
    assert json.loads((part / "manifest.json").read_text())["beneath"] == [{"name": "target", "digest": None}]


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


def rewrite(folder, change):
    """Alter the weights and drop the manifest, as an adapter from elsewhere."""
    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "manifest.json").unlink()


def rename(tensors):
    for key in list(tensors):
        tensors[key.replace("lora_A", "lora_X")] = tensors.pop(key)


def poison(tensors):
    next(iter(tensors.values()))[0] = float("inf")


def widen(tensors):
    key = next(iter(tensors))
    tensors[key] = torch.zeros(3, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (rename, "missing"),
        (poison, "not finite"),
        (widen, "does not fit"),
        (lambda tensors: tensors.pop(sorted(tensors)[-1]), "1 tensors missing"),
        (lambda tensors: tensors.update({"extra": torch.zeros(1)}), "unexpected"),
    ],
    ids=["renamed", "infinite", "reshaped", "one missing", "one too many"],
)
def test_weights_that_do_not_fit_are_refused(saved, tiny_model, change, message):
    folder, _ = saved
    rewrite(folder, change)
    with pytest.raises(ValueError, match=message):
        load_adapter(tiny_model(), folder)


def flip_bit(folder):
    path = folder / "adapter_model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def raise_alpha(folder):
    path = folder / "adapter_config.json"
    path.write_text(path.read_text().replace('"lora_alpha": 8', '"lora_alpha": 800'))


def truncate(folder):
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])


@pytest.mark.parametrize(
    ("fault", "name"),
    [(flip_bit, "adapter_model"), (truncate, "adapter_model"), (raise_alpha, "adapter_config")],
)
def test_a_file_that_differs_from_the_manifest_is_named(saved, tiny_model, fault, name):
    folder, _ = saved
    fault(folder)
    with pytest.raises(ValueError, match=f"{name}.*is not what manifest.json says"):
        load_adapter(tiny_model(), folder)


def test_truncated_weights_without_a_manifest_are_refused(saved, tiny_model):
    folder, _ = saved
    truncate(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        load_adapter(tiny_model(), folder)


@pytest.mark.parametrize("content", ["[]", '{"name": "of another program"}'])
def test_a_manifest_of_another_program_is_named(saved, tiny_model, content):
    (saved[0] / "manifest.json").write_text(content)
    with pytest.raises(ValueError, match=r"manifest\.json' was not written by this package"):
        load_adapter(tiny_model(), saved[0])


def test_a_broken_configuration_is_named(saved, tiny_model):
    (saved[0] / "manifest.json").unlink()
    (saved[0] / "adapter_config.json").write_text('{"peft_type": ')
    with pytest.raises(ValueError, match=r"adapter_config\.json' is not valid JSON"):
        load_adapter(tiny_model(), saved[0])


def test_another_base_is_refused(saved, tiny_model):
    with pytest.raises(ValueError, match="another base"):
        load_adapter(tiny_model(), saved[0], base_digest="sha256:other")


class Marker:
    def __reduce__(self):
        return (open, ("pwned", "w"))


def test_pickled_weights_are_refused_unopened(saved, tiny_model, tmp_path, monkeypatch):
    folder, _ = saved
    monkeypatch.chdir(tmp_path)
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Marker()))
    with pytest.raises(FileNotFoundError, match=r"adapter_model\.bin.*pickled"):
        load_adapter(tiny_model(), folder)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("r", 2_000_000_000, "rank"),
        ("target_modules", "(([a-z_.0-9])+)+$X", "pattern"),
        ("peft_type", "IA3", "only LORA"),
    ],
)
def test_an_unreasonable_config_is_refused_before_it_acts(saved, tiny_model, key, value, message):
    folder, _ = saved
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    (folder / "manifest.json").unlink()
    with pytest.raises(ValueError, match=message):
        load_adapter(tiny_model(), folder)


@pytest.mark.parametrize("name", ["../x", "/abs", "Upper", "a.b", ""])
def test_adapter_names_that_are_paths_are_refused(saved, tiny_model, name):
    with pytest.raises(ValueError, match="letters"):
        load_adapter(tiny_model(), saved[0], name=name)


def test_digests_see_every_bit_of_a_bfloat16_tensor():
    from llm_forget.models.digest import tensors_digest

    one, two = torch.ones(3, dtype=torch.bfloat16), torch.ones(3, dtype=torch.bfloat16)
    assert tensors_digest({"a": one}) == tensors_digest({"a": two})
    two[2] = 1.0078125  # the next bfloat16
    assert tensors_digest({"a": one}) != tensors_digest({"a": two})
    assert tensors_digest({"a": one}) != tensors_digest({"b": one})
    assert adapters.MAX_RANK == 1024
