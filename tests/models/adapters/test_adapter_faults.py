"""Faults injected into adapters on disk: each is refused where models are really loaded, and the message says why.

PEFT loads most of these with a warning or without, and what comes out is the model that has not forgotten. Every fault
is tried against an adapter as it was written, against one whose manifest was made to agree, and, where the files alone
tell, against one without a manifest that is trusted.
"""

import json
import os
import pickle
import shutil
import tarfile
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llm_forget.core.errors import AdapterRefused
from llm_forget.core.files import read_json, write_json
from llm_forget.models.adapters.files import load_adapter, save_adapter
from llm_forget.models.adapters.logit_fingerprint import effect_of
from llm_forget.models.adapters.lora import attach_adapter
from llm_forget.models.adapters.lora_config import MAX_RANK
from llm_forget.models.adapters.safe_read import MAX_WEIGHTS, read_header
from llm_forget.models.digest import source_digest
from llm_forget.models.load import load_base
from llm_forget.models.merging.full_model import merge_adapter
from llm_forget.workflows.evaluate import evaluate
from tests.support.disturbed import IDS, disturb, reseal

WEIGHTS, CONFIG, MANIFEST = "adapter_model.safetensors", "adapter_config.json", "manifest.json"


@pytest.fixture
def saved(tiny_folder, lora_args, tmp_path, saved_once):
    """An adapter with an effect, saved as a run saves it, and the arguments that load its base."""
    args = lora_args(tiny_folder)

    def save(folder):
        model = disturb(attach_adapter(load_base(args), args))
        save_adapter(model, folder, base_digest=source_digest(str(tiny_folder)), effect=effect_of(model))

    saved_once(("disturbed", source_digest(str(tiny_folder))), save, tmp_path / "adapter")
    return tmp_path / "adapter", args


def load(saved, **how):
    folder, args = saved
    return load_adapter(load_base(args), folder, base_digest=source_digest(args.model_name_or_path), **how)


def refused(saved, message, **how):
    with pytest.raises(AdapterRefused, match=message) as caught:
        load(saved, **how)
    return str(caught.value)


def rewrite(folder, change):
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})


def configure(folder, **changes):
    write_json(folder / CONFIG, read_json(folder / CONFIG) | changes)


def no_manifest(folder):
    (folder / MANIFEST).unlink()


# ---- 1: not a whole file ----


def cut(data):
    return data[:-8]


def empty(data):
    return b""


def endless_header(data):
    return (2**60).to_bytes(8, "little") + data[8:]


def long_header(data):
    return (len(data) + 1).to_bytes(8, "little") + data[8:]


def gap(data):
    return data + b"\0" * 8


@pytest.mark.slow
@pytest.mark.parametrize("fault", [cut, empty, endless_header, long_header, gap])
@pytest.mark.parametrize("manifest", ["as written", "made to agree", "none"])
def test_1_a_file_that_is_not_whole_is_named(saved, fault, manifest):
    folder, _ = saved
    (folder / WEIGHTS).write_bytes(fault((folder / WEIGHTS).read_bytes()))
    if manifest == "made to agree":
        reseal(folder)
    if manifest == "none":
        no_manifest(folder)
    assert WEIGHTS in refused(saved, "not a whole safetensors file", trust=manifest == "none")


def header_of(folder):
    data = (folder / WEIGHTS).read_bytes()
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def write_header(folder, text, body):
    data = text.encode()
    (folder / WEIGHTS).write_bytes(len(data).to_bytes(8, "little") + data + body)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data_offsets": [0, 2**50]}, "malformed"),
        ({"data_offsets": [-4, 0]}, "malformed"),
        ({"data_offsets": [0, 4]}, "shape of a tensor"),
        ({"shape": [2**31, 2**31]}, "shape of a tensor"),
        ({"shape": [4.0, 32]}, "malformed"),
        ({"shape": [True, 32]}, "malformed"),
        ({"shape": "4x32"}, "malformed"),
        ({"shape": [0, 32], "data_offsets": [0, 0]}, "shape of a tensor"),
        ({"dtype": "I64"}, "not of float32"),
        ({"dtype": ["F32"]}, "not of float32|malformed"),
    ],
)
def test_1_a_header_is_believed_in_nothing(saved, change, message):
    folder, _ = saved
    header, body = header_of(folder)
    first = next(key for key in header if key != "__metadata__")
    write_header(folder, json.dumps({**header, first: {**header[first], **change}}), body)
    no_manifest(folder)
    refused(saved, message, trust=True)


@pytest.mark.slow
def test_1_overlapping_tensors_and_repeated_names_are_refused(saved):
    folder, _ = saved
    header, body = header_of(folder)
    same = [key for key in header if "q_proj.lora_A" in key]
    write_header(folder, json.dumps({**header, same[1]: header[same[0]]}), body)
    with pytest.raises(AdapterRefused, match="overlap"):
        read_header(folder / WEIGHTS)
    write_header(folder, json.dumps(header)[:-1] + f', "{same[0]}": {json.dumps(header[same[1]])}}}', body)
    with pytest.raises(AdapterRefused, match="not valid JSON"):
        read_header(folder / WEIGHTS)
    write_header(folder, '{"a":' * 100_000 + "1" + "}" * 100_000, body)
    with pytest.raises(AdapterRefused, match="not valid JSON"):
        read_header(folder / WEIGHTS)


# ---- 2 to 7: other tensors, other settings ----


def flip(folder):
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[-1] ^= 1
    (folder / WEIGHTS).write_bytes(data)


def rename(tensors):
    for key in list(tensors):
        tensors[key.replace("q_proj", "w_proj").replace("lora_A", "lora_X")] = tensors.pop(key)


def rename_layers(tensors):
    for key in list(tensors):
        tensors[key.replace("layers.0", "layers.7")] = tensors.pop(key)


def drop_two(tensors):
    for key in sorted(tensors)[-2:]:
        del tensors[key]


def zero(tensors):
    for tensor in tensors.values():
        tensor.zero_()


def infinite(tensors):
    next(iter(tensors.values()))[0, 0] = float("inf")


def nan(tensors):
    sorted(tensors.items())[-1][1][-1, -1] = float("nan")


CHANGES = {
    "3 renamed": (rename, "unexpected tensor"),
    "3 of another layer": (rename_layers, "does not fit this model: tensors of 7 modules are missing"),
    "4 zeros": (zero, "changes no logit"),
    "5 two missing": (drop_two, "does not fit this model: tensors of 1 modules are missing"),
    "5 one missing": (lambda tensors: tensors.pop(sorted(tensors)[-1]), "is missing"),
    "5 one too many": (lambda tensors: tensors.update({"extra": torch.ones(1)}), "unexpected tensor 'extra'"),
    "6 infinite": (infinite, "not finite"),
    "6 not a number": (nan, "not finite"),
}


@pytest.mark.slow
@pytest.mark.parametrize(("change", "message"), CHANGES.values(), ids=CHANGES)
def test_3_to_6_other_tensors_are_refused_whatever_the_manifest_says(saved, change, message):
    folder, _ = saved
    rewrite(folder, change)
    refused(saved, "is not what manifest.json says was written")
    reseal(folder)
    refused(saved, message)
    no_manifest(folder)
    refused(saved, message, trust=True)


@pytest.mark.slow
def test_2_one_bit_is_seen(saved):
    flip(saved[0])
    assert WEIGHTS in refused(saved, "is not what manifest.json says was written")


@pytest.mark.slow
def test_4_half_of_an_adapter_is_not_its_effect(saved):
    folder, _ = saved
    rewrite(folder, lambda tensors: [value.zero_() for key, value in tensors.items() if "layers.0" in key])
    reseal(folder)
    refused(saved, "another effect than when it was saved")


NAMES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [{"lora_alpha": 800}, {"use_rslora": True}, {"layers_to_transform": [0], "target_modules": NAMES}],
    ids=lambda change: next(iter(change)),
)
def test_7_other_settings_are_refused_by_digest_and_by_effect(saved, change):
    folder, _ = saved
    configure(folder, **change)
    assert CONFIG in refused(saved, "is not what manifest.json says was written")
    reseal(folder)
    refused(saved, "another effect|does not fit this model: tensors of 0 modules are missing")


# ---- 8 to 10: what a configuration may ask for ----


@pytest.mark.slow
@pytest.mark.parametrize("change", [{"r": 2_000_000_000}, {"r": MAX_RANK + 1}, {"r": 0}, {"r": True}, {"r": None},
                                    {"rank_pattern": {"q_proj": 10**9}}])  # fmt: skip
def test_8_a_rank_without_bounds_is_refused_before_anything_is_allocated(saved, change):
    folder, _ = saved
    configure(folder, **change)
    no_manifest(folder)
    refused(saved, "rank", trust=True)


@pytest.mark.slow
def test_8_a_rank_that_is_not_that_of_the_tensors_is_refused_before_anything_is_allocated(saved, monkeypatch):
    folder, _ = saved
    configure(folder, r=MAX_RANK)
    no_manifest(folder)
    monkeypatch.setattr("peft.get_peft_model", lambda *given, **how: pytest.fail("something was allocated"))
    refused(saved, "do not have the rank", trust=True)


PATTERN = "(([a-z_.0-9])+)+$X"


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        {"target_modules": PATTERN},
        {"target_modules": [PATTERN]},
        {"exclude_modules": PATTERN},
        {"modules_to_save": [PATTERN]},
        {"layers_pattern": PATTERN, "layers_to_transform": [0]},
        {"rank_pattern": {PATTERN: 4}},
        {"alpha_pattern": {PATTERN: 4}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_9_a_pattern_is_never_tried(saved, change):
    folder, _ = saved
    configure(folder, **change)
    no_manifest(folder)
    began = time.perf_counter()
    refused(saved, next(iter(change)), trust=True)
    assert time.perf_counter() - began < 5


@pytest.mark.slow
def test_10_what_a_configuration_claims_of_its_base_is_neither_followed_nor_kept(saved, tmp_path):
    from llm_forget.workflows.adopt import adopt

    folder, args = saved
    evil = {"base_model_class": "system", "parent_library": "os"}
    configure(folder, base_model_name_or_path="evil/model", auto_mapping=evil, revision="evil")
    refused(saved, "is not what manifest.json says was written")
    no_manifest(folder)
    with pytest.raises(AdapterRefused, match="no manifest"):  # and the hub is asked nothing about evil/model
        load_base(type(args)(model_name_or_path=str(folder)))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    run = adopt(folder, tmp_path / "run", base=args.model_name_or_path)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    kept = read_json(run.adapter / CONFIG)
    assert (kept["base_model_name_or_path"], kept["auto_mapping"], kept["revision"]) == ("tiny", None, None)
    assert read_json(run.adapter / MANIFEST)["base"] == source_digest(args.model_name_or_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        {"init_lora_weights": "pissa"},
        {"layer_replication": [[0, 2], [1, 2]]},
        {"bias": "all"},
        {"peft_type": "IA3"},
        {"task_type": "SEQ_CLS"},
        {"trainable_token_indices": [1]},
        {"of_a_later_peft": {"a": 1}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_10_settings_that_reach_beyond_lora_weights_are_refused(saved, change):
    folder, _ = saved
    configure(folder, **change)
    no_manifest(folder)
    refused(saved, next(iter(change)) if "peft_type" not in change else "only LORA", trust=True)


# ---- 11 to 14: files ----


class Marker:
    def __reduce__(self):
        return (open, ("pwned", "w"))


@pytest.mark.slow
@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("ending", ["bin", "pt", "pkl"])
def test_11_pickled_weights_are_refused_unopened(saved, tmp_path, monkeypatch, alone, ending):
    folder, _ = saved
    monkeypatch.chdir(tmp_path)
    (folder / f"adapter_model.{ending}").write_bytes(pickle.dumps(Marker()))
    if alone:
        (folder / WEIGHTS).unlink()
    refused(saved, "is pickled")
    assert not (tmp_path / "pwned").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["/tmp/x", "../../x", "../x", "Upper", "a.b", "", "x" * 65, "a\n"])
def test_12_and_13_adapter_names_are_no_paths(saved, name):
    refused(saved, "lower-case letters", name=name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [WEIGHTS, CONFIG, MANIFEST, "README.md"])
def test_14_links_are_not_followed(saved, tmp_path, name):
    folder, args = saved
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to("/etc/passwd")
    refused(saved, "symbolic link")
    refused(saved, "symbolic link", trust=True)
    with pytest.raises(AdapterRefused, match=r"symbolic link|not opened"):
        load_base(type(args)(model_name_or_path=str(folder)))


@pytest.mark.slow
def test_14_pipes_archives_and_huge_files_are_refused_unread(saved, tmp_path, lora_args):
    folder, _ = saved
    with tarfile.open(tmp_path / "adapter.tar", "w") as archive:
        archive.add(folder / CONFIG, arcname="../../escaped.json")
    for archive in (tmp_path / "adapter.tar", shutil.make_archive(tmp_path / "packed", "zip", folder)):
        with pytest.raises(AdapterRefused, match="archive"):
            load_base(lora_args(archive))
        with pytest.raises(AdapterRefused, match="archive"):
            load_adapter(None, archive)
        shutil.copy(archive, folder)
        refused(saved, "archive")
        (folder / Path(archive).name).unlink()
    assert not (tmp_path.parent / "escaped.json").exists()
    os.mkfifo(folder / "pipe")
    refused(saved, "not a regular file")
    (folder / "pipe").unlink()
    for size, message in ((10 * 2**30, "not a whole safetensors file"), (MAX_WEIGHTS + 1, "at most")):
        with open(folder / WEIGHTS, "r+b") as file:
            file.truncate(size)
        began = time.perf_counter()
        refused(saved, message)
        assert time.perf_counter() - began < 5


# ---- 15 and 16: another base, another way of loading ----


@pytest.mark.slow
def test_15_another_base_of_the_same_shapes_is_refused(saved, tiny_model):
    folder, args = saved
    tiny_model(seed=1, vocab_size=259).save_pretrained(args.model_name_or_path)
    refused(saved, "another base")
    reseal(folder, base=source_digest(args.model_name_or_path))
    refused(saved, "another effect")


@pytest.mark.slow
def test_16_sixteen_bits_load_as_they_were_saved_and_in_no_other_way(tiny_folder, lora_args, tmp_path):
    args = lora_args(tiny_folder, dtype="bfloat16")
    model = disturb(attach_adapter(load_base(args), args)).eval()
    folder = save_adapter(model, tmp_path / "adapter", effect=effect_of(model))
    manifest = read_json(folder / MANIFEST)
    assert manifest["load"] == {"autocast_adapter_dtype": True, "dtype": "bfloat16"}
    again = load_adapter(load_base(args), folder)
    assert {value.dtype for key, value in again.named_parameters() if "lora_" in key} == {torch.float32}
    with torch.no_grad():
        assert torch.equal(again(IDS).logits, model(IDS).logits)
    reseal(folder, load={"autocast_adapter_dtype": False})
    with pytest.raises(AdapterRefused, match="other adapter weights than float32"):
        load_adapter(load_base(args), folder)


@pytest.mark.slow
def test_an_adapter_loads_in_another_precision_than_it_was_saved_in(saved):
    _, args = saved
    args.dtype = "bfloat16"
    assert load(saved).dtype == torch.bfloat16


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        {"quantization": {"model_name_or_path": "evil"}},
        {"quantization": []},
        {"load": None},
        {"load": {}},
        {"effect": 1},
        {"effect": {}},
        {"effect": {"max_abs": "1", "samples": [0] * 64}},
        {"tensors": {"a": 1}},
        {"files": {}},
        {"files": None},
    ],
    ids=lambda change: json.dumps(change)[:30],
)
def test_a_manifest_that_is_not_as_it_is_written_is_refused(saved, change):
    folder, _ = saved
    write_json(folder / MANIFEST, read_json(folder / MANIFEST) | change)
    refused(saved, "unknown key|key '|is not what|has no manifest|other adapter weights than float32")


@pytest.mark.slow
def test_names_from_a_file_do_not_reach_the_terminal_as_they_are(saved):
    folder, _ = saved
    rewrite(folder, lambda tensors: tensors.update({"\x1b[2J": torch.ones(1)}))
    reseal(folder)
    assert "\x1b" not in refused(saved, "unexpected tensor")


@pytest.mark.slow
def test_only_what_is_saved_at_the_end_records_its_effect(make_trainer, tmp_path):
    trainer = make_trainer(save_strategy="epoch")
    trainer.train()
    trainer.save_model(str(tmp_path / "last"))
    checkpoint = next(Path(trainer.args.output_dir).glob("checkpoint-*"))
    assert read_json(checkpoint / MANIFEST)["effect"] is None
    assert read_json(tmp_path / "last" / MANIFEST)["effect"] == effect_of(trainer.model)


@pytest.mark.slow
def test_the_effect_of_training_in_half_precision_is_that_of_what_is_loaded(make_trainer, tmp_path):
    """Accelerate leaves its autocast on the model; the adapter is measured as it will be loaded."""
    trainer = make_trainer(bf16=True)
    trainer.train()
    trainer.save_model(str(tmp_path / "last"))
    recorded = read_json(tmp_path / "last" / MANIFEST)["effect"]
    bare = trainer.model
    bare.forward = bare._original_forward
    assert recorded == effect_of(bare)
    assert recorded["max_abs"] > 0


# ---- the same through commands ----


@pytest.fixture
def run(make_run):
    return make_run("run")


@pytest.fixture
def command(tmp_path, monkeypatch):
    """``command(*words)``: the command line, in this process."""
    from typer.testing import CliRunner

    from llm_forget.cli.main import app

    monkeypatch.chdir(tmp_path)
    return lambda *words: CliRunner().invoke(app, words)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["zeros", "renamed", "link"])
def test_commands_leave_with_code_4_and_one_sentence(run, command, tmp_path, fault):
    if fault == "link":
        (run.adapter / WEIGHTS).rename(tmp_path / "away.safetensors")
        (run.adapter / WEIGHTS).symlink_to(tmp_path / "away.safetensors")
    else:
        rewrite(run.adapter, zero if fault == "zeros" else rename)
        reseal(run.adapter)
    for words in (("evaluate", str(run.path)), ("merge", str(run.path), "--output_dir", str(tmp_path / "merged"))):
        done = command(*words)
        assert done.exit_code == 4, done.stderr
        said = done.stderr.strip().splitlines()[-1]
        assert said.startswith("llm-forget: ")
        assert {"zeros": "changes no logit", "renamed": "unexpected tensor", "link": "symbolic link"}[fault] in said
        assert "Traceback" not in done.stderr
    assert not run.results_file.exists()
    assert not (tmp_path / "merged").exists()


@pytest.mark.slow
def test_every_way_to_an_adapter_refuses_one_that_was_changed(run, tmp_path, lora_args):
    flip(run.adapter)
    target = run.config["model_name_or_path"]
    for way in (
        lambda: load_base(lora_args(run.path)),
        lambda: load_base(lora_args(run.adapter)),
        lambda: evaluate(run.path, quiet=True),
        lambda: merge_adapter(lora_args(target), run.adapter, tmp_path / "merged"),
    ):
        with pytest.raises(AdapterRefused, match=WEIGHTS):
            way()


@pytest.mark.slow
def test_a_foreign_adapter_is_adopted_only_when_somebody_vouches_for_it(run, command, tmp_path, lora_args):
    foreign, target = tmp_path / "foreign", run.config["model_name_or_path"]
    shutil.copytree(run.adapter, foreign)
    no_manifest(foreign)
    configure(foreign, base_model_name_or_path=target)
    for words, code in (([], 4), (["--trust"], 0)):
        done = command("adopt", str(foreign), "--output_dir", "adopted", *words)
        assert done.exit_code == code, done.stderr
        assert "rank 4" in done.stdout
    assert not (foreign / MANIFEST).exists()
    with torch.no_grad():
        expected = load_adapter(load_base(lora_args(target)), run.adapter)(IDS).logits
        assert torch.equal(load_base(lora_args(tmp_path / "adopted"))(IDS).logits, expected)
    assert read_json(tmp_path / "adopted" / "adapter" / MANIFEST)["effect"]["max_abs"] > 0
    rewrite(foreign, zero)
    done = command("adopt", str(foreign), "--output_dir", "zeros", "--trust")
    assert (done.exit_code, (tmp_path / "zeros").exists()) == (4, False)
    assert "changes no logit" in done.stderr


@pytest.mark.slow
def test_embeddings_that_peft_saved_along_are_left_out_if_they_are_the_bases_own(tiny_folder, lora_args, tmp_path):
    from llm_forget.workflows.adopt import adopt

    args = lora_args(tiny_folder, lora_target_modules=["q_proj", "embed_tokens"])
    model = disturb(attach_adapter(load_base(args), args))
    with torch.no_grad():
        expected = model(IDS).logits
    model.save_pretrained(tmp_path / "saved", save_embedding_layers=True)
    (folder,) = (path.parent for path in (tmp_path / "saved").rglob(WEIGHTS))
    assert any(key.endswith("embed_tokens.base_layer.weight") for key in load_file(folder / WEIGHTS))
    run = adopt(folder, tmp_path / "run", base=str(tiny_folder))
    assert not any("base_layer" in key for key in load_file(run.adapter / WEIGHTS))
    with torch.no_grad():
        assert torch.equal(load_base(lora_args(run.path))(IDS).logits, expected)

    def trained(tensors):
        next(value for key, value in tensors.items() if "base_layer" in key)[0] += 1

    rewrite(folder, trained)
    with pytest.raises(
        AdapterRefused, match=r"contains embeddings .* that differ from the base's; .*save_embedding_layers=False"
    ):
        adopt(folder, tmp_path / "other", base=str(tiny_folder))
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_an_adapter_with_a_manifest_is_adopted_without_trust_and_held_to_it(saved, tmp_path, lora_args):
    from llm_forget.workflows.adopt import adopt

    folder, args = saved
    run = adopt(folder, tmp_path / "run", base=args.model_name_or_path)
    with torch.no_grad():
        assert torch.equal(load_base(lora_args(run.path))(IDS).logits, load(saved)(IDS).logits)
    with pytest.raises(AdapterRefused, match="another base"):
        adopt(folder, tmp_path / "demo", base="builtin:demo-llama")
    flip(folder)
    with pytest.raises(AdapterRefused, match=WEIGHTS):
        adopt(folder, tmp_path / "other", base=args.model_name_or_path)


@pytest.mark.slow
@pytest.mark.parametrize(("scale", "said"), [(0.0, "changes no logit"), (float("1e30"), "not finite"), (1.0, None)])
def test_training_without_effect_is_said_when_the_adapter_is_saved(
    tiny_folder, lora_args, tmp_path, caplog, monkeypatch, scale, said
):
    import logging

    monkeypatch.setattr(logging.getLogger("llm_forget"), "propagate", True)  # a command before may have set it
    args = lora_args(tiny_folder)
    model = disturb(attach_adapter(load_base(args), args), scale=scale)
    save_adapter(model, tmp_path / "adapter", effect=effect_of(model))
    assert (said in caplog.text) if said else ("adapter" not in caplog.text)


@pytest.mark.slow
def test_an_effect_that_sharded_training_left_open_is_recorded_by_the_first_load(run, lora_args):
    assert read_json(run.adapter / MANIFEST)["effect"] is None
    base = lora_args(run.config["model_name_or_path"])
    load_adapter(load_base(base), run.adapter)
    assert read_json(run.adapter / "effect.json")["max_abs"] > 0
    rewrite(run.adapter, lambda tensors: [value.mul_(0.5) for value in tensors.values()])
    reseal(run.adapter)
    with pytest.raises(AdapterRefused, match="another effect"):
        load_adapter(load_base(base), run.adapter)
