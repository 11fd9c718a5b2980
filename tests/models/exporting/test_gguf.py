"""A GGUF file is believed only after it was read back: weights, configuration and tokenizer."""

import errno
import json
import logging
import resource
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoTokenizer,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from trl import ModelConfig

from llm_forget.core import formats
from llm_forget.core.formats.models import ExportReport
from llm_forget.models.digest import source_digest
from llm_forget.models.exporting import gguf, gguf_tokenizer
from llm_forget.models.exporting.gguf import FORMS, read_gguf, refuse_architecture, write_gguf
from llm_forget.models.exporting.gguf_tokenizer import LLAMA3, QWEN2, SAMPLES, check_tokenizer, describe_tokenizer
from llm_forget.models.load import load_base, load_tokenizer

GGMLQuantizationType = pytest.importorskip("gguf").GGMLQuantizationType
IDS = torch.tensor([[3, 40, 5, 99, 7, 250, 11, 64]])
SIZES = {
    "vocab_size": 420, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2,
}  # fmt: skip


def family(kind, tiny_model):
    """A model with random weights everywhere: biases and norms too, which are constant at first."""
    if kind == "llama":
        model = tiny_model(**SIZES)
    elif kind == "llama, tied, wide heads":
        model = tiny_model(**SIZES, tie_word_embeddings=True, head_dim=32, rms_norm_eps=1e-5)
    elif kind == "mistral":
        model = MistralForCausalLM(MistralConfig(**SIZES, sliding_window=None))
    elif kind == "qwen2":
        rope = {"rope_type": "default", "rope_theta": 1e6}
        model = Qwen2ForCausalLM(Qwen2Config(**SIZES, tie_word_embeddings=True, rope_parameters=rope))
    else:
        model = Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=128))
    torch.manual_seed(7)
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


@pytest.fixture(scope="module")
def tokenizer():
    return trained()


FAMILIES = ("llama", "llama, tied, wide heads", "mistral", "qwen2", "qwen3")


@torch.no_grad()
def logits(model):
    return model(IDS).logits


@pytest.mark.slow
@pytest.mark.parametrize("kind", FAMILIES)
def test_every_architecture_is_read_back_as_the_same_function(kind, tiny_model, tokenizer, tmp_path):
    model = family(kind, tiny_model)
    wanted = logits(model)
    path = tmp_path / "model.gguf"
    write_gguf(model, tokenizer, path, "gguf-f32")
    back = read_gguf(path, ModelConfig(), model.config)
    assert torch.allclose(logits(back), wanted, atol=1e-5, rtol=0)
    assert torch.equal(logits(model), wanted)  # float32 rounds nothing


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_the_model_is_rounded_to_what_is_in_the_file(form, tiny_model, tokenizer, tmp_path):
    model = family("llama", tiny_model)
    wanted = logits(model)
    write_gguf(model, tokenizer, tmp_path / "model.gguf", form)
    back = read_gguf(tmp_path / "model.gguf", ModelConfig(), model.config)
    assert torch.allclose(logits(back), logits(model), atol=1e-5, rtol=0)
    worst = {"f32": 0.0, "f16": 0.01, "bf16": 0.1, "q8_0": 0.2, "q5_1": 1.5, "q5_0": 1.5, "q4_1": 3.0, "q4_0": 3.0}
    difference = float((logits(back) - wanted).abs().max())
    assert difference <= worst[form.removeprefix("gguf-")]
    assert (difference > 0) == (form != "gguf-f32")


@pytest.mark.slow
def test_better_forms_are_nearer_to_the_model(tiny_model, tokenizer, tmp_path):
    off = []
    for form in ("gguf-f16", "gguf-q8_0", "gguf-q5_0", "gguf-q4_0"):
        model = family("llama", tiny_model)
        wanted = logits(model)
        write_gguf(model, tokenizer, tmp_path / f"{form}.gguf", form)
        off.append(float((logits(model) - wanted).square().mean()))
    assert off == sorted(off)
    assert off[1] > 4 * off[0]


def test_what_fits_no_block_and_both_ends_are_kept_better(tiny_model, tokenizer, tmp_path):
    model = tiny_model(**{**SIZES, "intermediate_size": 48})
    found = write_gguf(model, tokenizer, tmp_path / "m.gguf", "gguf-q4_0")
    # 2 ends; 7 matrices a layer, of which the down projection has rows of 48; 2 norms a layer and the last one.
    assert found["tensors"] == {"F16": 2, "F32": 5, "Q4_0": 12, "Q8_0": 2}


@pytest.mark.slow
@pytest.mark.parametrize("wrong", ["not interleaved", "another base of positions", "another epsilon"])
def test_a_file_that_says_something_else_is_seen(wrong, tiny_model, tokenizer, tmp_path, monkeypatch):
    model = family("llama", tiny_model)
    path = tmp_path / "model.gguf"
    if wrong == "not interleaved":
        monkeypatch.setattr(gguf, "HEADS_INTERLEAVED", ())
        write_gguf(model, tokenizer, path, "gguf-f32")
        assert float((logits(read_gguf(path, ModelConfig(), model.config)) - logits(model)).abs().max()) > 0.1
        return
    write_gguf(model, tokenizer, path, "gguf-f32")
    if wrong == "another epsilon":
        model.config.rms_norm_eps = 1e-3
    else:
        model.config.rope_parameters["rope_theta"] = 5000.0
    with pytest.raises(ValueError, match=r"rms_norm_eps|rope_theta"):
        read_gguf(path, ModelConfig(), model.config)


def test_values_beyond_16_bits_are_refused(tiny_model, tokenizer, tmp_path):
    model = tiny_model(**SIZES)
    model.model.layers[0].mlp.up_proj.weight.data[0, 0] = 1e6
    with pytest.raises(ValueError, match="range of F16; take gguf-bf16"):
        write_gguf(model, tokenizer, tmp_path / "m.gguf", "gguf-f16")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}, "position scaling 'linear'"),
        ({"attention_bias": True}, "biases of attention"),
    ],
)
def test_what_a_reader_loses_is_refused_with_a_way_out(changes, said, tiny_model):
    with pytest.raises(
        ValueError, match=f"{said}.*nothing here could measure the file; convert.*convert_hf_to_gguf.py"
    ):
        refuse_architecture(tiny_model(**SIZES, **changes).config, "mine")


def test_other_architectures_are_refused_by_name():
    from transformers import GPT2Config

    with pytest.raises(
        ValueError,
        match=r"'mine' is a gpt2; GGUF export supports llama, mistral, qwen2, qwen3; convert .*evaluate FILE.gguf",
    ):
        refuse_architecture(GPT2Config(), "mine")
    sliding = MistralConfig(**SIZES, sliding_window=64)
    with pytest.raises(ValueError, match="sliding-window attention"):
        refuse_architecture(sliding, "mine")
    with pytest.raises(ValueError, match="heads of 64 dimensions"):
        refuse_architecture(Qwen3Config(**SIZES, head_dim=64), "mine")


def test_a_full_disk_is_an_error_of_the_disk(tiny_model, tokenizer, tmp_path):
    model = tiny_model(**SIZES)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, limits[1]))
        with pytest.raises(OSError, match="File too large") as caught:
            write_gguf(model, tokenizer, tmp_path / "m.gguf", "gguf-f32")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.errno == errno.EFBIG


TEXTS = [
    *SAMPLES,
    "the quick brown fox jumps over the lazy dog 1234 times",
    "Größe größer am größten",
    "don't won't",
] * 3


def trained(split=None, *, normalizer=None, spaces=None):
    """A small BPE that really merges: byte-level with a rule, or SentencePiece's kind."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    special = ["<s>", "</s>", "<pad>", "<|turn|>", "<|endoftext|>"]
    if spaces is not None:
        bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
        tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
        ) if spaces else normalizers.Replace(" ", "\u2581")  # fmt: skip
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
        )
        trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=["<unk>", *special, *bytes_], show_progress=False)
    else:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.normalizer = normalizer
        level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not isinstance(split, str))
        first = pre_tokenizers.Split(Regex(split), "isolated") if isinstance(split, str) else split
        tokenizer.pre_tokenizer = level if first is None else pre_tokenizers.Sequence([first, level])
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        trainer = trainers.BpeTrainer(
            vocab_size=420, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        )
    tokenizer.train_from_iterator(TEXTS, trainer)
    if spaces is not None:  # bytes are tokens like others
        content = json.loads(tokenizer.to_str())
        content["added_tokens"] = [token for token in content["added_tokens"] if not token["content"].startswith("<0x")]
        tokenizer = Tokenizer.from_str(json.dumps(content))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    names = {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "extra_special_tokens": ["<|turn|>", "<|endoftext|>"],
    }
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **names, **({"unk_token": "<unk>"} if spaces is not None else {})
    )


def kinds_of_tokenizer():
    from tokenizers import normalizers, pre_tokenizers

    level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    retrained = trained()  # has merges of digits, which its rule keeps apart
    digits = pre_tokenizers.Digits(individual_digits=True)
    retrained.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, level])
    return {
        "gpt-2": trained(),
        "llama-bpe": trained(LLAMA3),
        "qwen2": trained(QWEN2, normalizer=normalizers.NFC()),
        "smollm": retrained,
        "default": trained(spaces=True),
        "default without a first space": trained(spaces=False),
    }


@pytest.fixture(scope="module")
def tokenizers():
    return kinds_of_tokenizer()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "differing"),
    [("gpt-2", 0), ("llama-bpe", 0), ("qwen2", 1), ("smollm", 3), ("default", None)],
)
def test_tokens_merges_and_special_tokens_survive(kind, differing, tokenizers, tiny_model, tmp_path):
    tokenizer = tokenizers[kind]
    tokenizer.chat_template = "{% for m in messages %}<|turn|>{{ m.content }}{% endfor %}"
    model = tiny_model(**{**SIZES, "vocab_size": 480})  # more rows than tokens, as Qwen's
    path = tmp_path / "model.gguf"
    said = write_gguf(model, tokenizer, path, "gguf-f32")["tokenizer"]
    assert said == {"model": "llama" if kind == "default" else "gpt2", "pre": kind.split()[0], "tokens": 480}
    found = check_tokenizer(tokenizer, path, said["pre"])
    assert found["samples"] > 30
    assert differing is None or found["differing"] == differing
    back = AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name)
    assert back.chat_template == tokenizer.chat_template
    assert (back.bos_token_id, back.eos_token_id, back.pad_token_id) == (
        tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id,
    )  # fmt: skip
    assert back("x").input_ids[0] == tokenizer.bos_token_id
    assert load_base(ModelConfig(model_name_or_path=str(path))).config.vocab_size == 480


@pytest.mark.slow
@pytest.mark.parametrize("wrong", ["merges", "special", "bos"])
def test_a_tokenizer_that_is_read_back_as_another_is_refused(wrong, tokenizers, tiny_model, tmp_path, monkeypatch):
    described = gguf_tokenizer.describe_tokenizer

    def otherwise(tokenizer, rows):
        from dataclasses import replace

        said = described(tokenizer, rows)
        if wrong == "merges":
            return replace(said, merges=said.merges[:-20])
        if wrong == "bos":
            return replace(said, add_bos=False)
        return replace(said, kinds=[1] * rows)

    monkeypatch.setattr(gguf, "describe_tokenizer", otherwise)
    path = tmp_path / "model.gguf"
    write_gguf(tiny_model(**{**SIZES, "vocab_size": 420}), tokenizers["gpt-2"], path, "gguf-f32")
    with pytest.raises(ValueError, match="sample texts are cut into other tokens"):
        check_tokenizer(tokenizers["gpt-2"], path, "gpt-2")


def test_a_tokenizer_that_has_no_name_in_gguf_is_refused(tokenizers):
    from tokenizers import pre_tokenizers

    with pytest.raises(ValueError, match=r"splits text by Whitespace and ByteLevel, a rule.*convert_hf_to_gguf.py"):
        describe_tokenizer(trained(pre_tokenizers.Whitespace()), 500)
    with pytest.raises(ValueError, match="tokens up to 419, and the model 300 rows"):
        describe_tokenizer(tokenizers["gpt-2"], 300)


def test_scores_rank_merges_as_sentencepiece_does(tokenizers):
    tokenizer = tokenizers["default"]
    said = describe_tokenizer(tokenizer, 430)
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    made = [said.scores[tokenizer.convert_tokens_to_ids("".join(pair))] for pair in merges]
    assert made == sorted(made, reverse=True)
    assert said.kinds[tokenizer.convert_tokens_to_ids("<0x41>")] == gguf_tokenizer.BYTE
    assert said.tokens[-1] == "[PAD429]"
    assert said.kinds[-1] == gguf_tokenizer.UNUSED


def test_no_folder_of_this_machine_stands_in_the_file(tiny_model, tokenizer, tmp_path):
    tiny_model(**SIZES).save_pretrained(tmp_path / "tiny")
    tokenizer.save_pretrained(tmp_path / "tiny")
    args = ModelConfig(model_name_or_path=str(tmp_path / "tiny"))
    path = tmp_path / "model.gguf"
    write_gguf(load_base(args), load_tokenizer(args), path, "gguf-q8_0")
    content = path.read_bytes()
    assert str(tmp_path).encode() not in content
    assert tmp_path.name.encode() not in content
    assert source_digest(str(path)).startswith("sha256:")


@pytest.mark.slow
def test_tokenizer_files_beside_an_exported_gguf_file_are_preferred(tiny_model, tmp_path):
    tokenizer = trained()
    path = tmp_path / "model.gguf"
    write_gguf(tiny_model(**SIZES), tokenizer, path, "gguf-q8_0")
    tokenizer.add_tokens(["beside"])
    tokenizer.save_pretrained(tmp_path)
    from_file = load_tokenizer(ModelConfig(model_name_or_path=str(path)))
    assert "beside" not in from_file.get_vocab()
    assert from_file.eos_token == "</s>"  # of files beside, transformers by itself would take all but special tokens
    report = {
        "form": "gguf-q8_0", "of": {"digest": source_digest(str(path))}, "merge": None, "file": path.name,
        "digest": source_digest(str(path)), "n_probe_tokens": 1, "max_abs_logit_difference": 0.0, "mean_kl": 0.0,
        "files": {},
    }  # fmt: skip
    formats.write(tmp_path / "export.json", report, ExportReport)
    assert "beside" in load_tokenizer(ModelConfig(model_name_or_path=str(path))).get_vocab()


def test_the_path_is_a_file_of_its_own(tiny_model, tokenizer, tmp_path):
    path = tmp_path / "model.gguf"
    write_gguf(tiny_model(**SIZES), tokenizer, path, "gguf-f16")
    assert [file.name for file in Path(tmp_path).iterdir()] == ["model.gguf"]


@pytest.mark.slow
def test_a_file_with_more_rows_than_tokens_is_compared_with_the_model_it_was_made_from(
    tiny_model, tmp_path, monkeypatch
):
    monkeypatch.setenv("LLM_FORGET_CACHE", str(tmp_path / "cache"))
    from llm_forget.workflows.evaluate import evaluate

    model, tokenizer = tiny_model(**{**SIZES, "vocab_size": 480}), trained()
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    write_gguf(model, tokenizer, tmp_path / "theirs.gguf", "gguf-f32")
    (tmp_path / "rows.jsonl").write_text(json.dumps({"question": "the quick?", "answer": "brown fox"}) + "\n")
    rows = str(tmp_path / "rows.jsonl")
    line = {"metric": "probability", "records": "forget", "goal": "keep"}
    probes = {"forget": {"probe": "logprobs", "split": "forget"}}
    suite = {"probes": probes, "metrics": {"forget_probability": line}, "verdict": {}}
    (tmp_path / "suite.yaml").write_text(json.dumps(suite))
    found = evaluate(
        tmp_path / "theirs.gguf",
        tmp_path / "suite.yaml",
        target=str(tmp_path / "model"),
        forget=rows,
        retain=rows,
        quiet=True,
    )
    line = found["suites"]["suite"]["metrics"]["forget_probability"]
    assert line["value"] == pytest.approx(line["before"]["value"], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["rope_freqs.weight", "llama.rope.scaling.type", "nothing"])
def test_what_transformers_passes_over_in_a_file_is_said(what, tiny_model, tokenizer, tmp_path, monkeypatch, caplog):
    from gguf import GGUFWriter, RopeScalingType

    head = gguf._add_metadata

    def more(writer: GGUFWriter, config, form):
        head(writer, config, form)
        if what == "llama.rope.scaling.type":
            writer.add_rope_scaling_type(RopeScalingType.YARN)

    monkeypatch.setattr(gguf, "_add_metadata", more)
    model = tiny_model(**SIZES)
    if what == "rope_freqs.weight":  # as a converter writes it for Llama 3
        tensors = gguf._tensors
        freqs = gguf._Tensor(what, torch.ones(8), GGMLQuantizationType.F32, None)
        monkeypatch.setattr(gguf, "_tensors", lambda *given: [*tensors(*given), freqs])
    write_gguf(model, tokenizer, tmp_path / "m.gguf", "gguf-f32")
    monkeypatch.setattr(logging.getLogger("llm_forget"), "propagate", True)
    load_base(ModelConfig(model_name_or_path=str(tmp_path / "m.gguf")))
    said = {record.getMessage() for record in caplog.records if "does not read" in record.getMessage()}
    sentence = f"'m.gguf' holds {what}, which transformers does not read: llama.cpp answers differently"
    assert said == (set() if what == "nothing" else {sentence})


@pytest.mark.parametrize("size", [0, 3, 30, 1000, 3000])
def test_a_file_that_is_cut_off_is_said_in_a_sentence(size, tiny_model, tokenizer, tmp_path):
    path = tmp_path / "m.gguf"
    write_gguf(tiny_model(**SIZES), tokenizer, path, "gguf-f32")
    path.write_bytes(path.read_bytes()[:size])
    args = ModelConfig(model_name_or_path=str(path))
    for load in (load_base, load_tokenizer):
        with pytest.raises(ValueError, match=r"damaged|GGUF magic|empty"):
            load(args)


@pytest.mark.parametrize("content", ["[]", "{", '{"file": "other.gguf"}', "1"])
def test_a_file_of_that_name_which_says_something_else_is_passed_over(content, tmp_path):
    from llm_forget.models.model_source import find_source

    (tmp_path / "model.gguf").touch()
    (tmp_path / "export.json").write_text(content)
    assert find_source(str(tmp_path / "model.gguf")).tokenizer_folders == ()
