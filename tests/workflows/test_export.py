"""Export: the written files are read back and evaluated; after a failure none is left."""

import json

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from llm_forget.cli.main import app
from llm_forget.core.digests import file_digest
from llm_forget.core.errors import AdapterRefused
from llm_forget.core.files import read_json
from llm_forget.models.adapters.verification import verify_adapter
from llm_forget.models.digest import source_digest
from llm_forget.models.exporting.gguf import FORMS
from llm_forget.models.load import load_base
from llm_forget.workflows import export as module
from llm_forget.workflows.evaluate import evaluate
from llm_forget.workflows.export import export, new_failures
from llm_forget.workflows.merge import merge
from tests.models.exporting.test_gguf import trained
from tests.support.tiny_runs import CANARY, SUITE

pytestmark = pytest.mark.slow

pytest.importorskip("gguf")
pytest.importorskip("bitsandbytes")
IDS = torch.arange(3, 21).view(2, 9)


@pytest.fixture(scope="session")
def tiny_tokenizer():
    """A tokenizer with merges, which GGUF requires, for the models of `make_run`."""
    return trained()


@pytest.fixture
def tiny_model(tiny_model):
    """Rows of 64, the 4-bit block, in which some CPUs repack weights."""
    return lambda seed=0, **changes: tiny_model(seed, **{"hidden_size": 64, "intermediate_size": 128, **changes})


@pytest.fixture
def run(make_run):
    return make_run("mine")


MADE = {}  # runs that were exported and measured, by form: tests of this file read them


def texts(folder):
    """Files with generated texts."""
    return sorted(path for path in folder.rglob("*.jsonl") if b'"text": "' in path.read_bytes())


@pytest.fixture
def exported(request, tmp_path, session_cache):
    """``exported(form)``: a run, the folder of its export, and the report; each form is made once."""

    def make(form):
        if form not in MADE:
            run, before = request.getfixturevalue("run"), texts(session_cache)
            report = export(run.path, form, tmp_path / form, quiet=True)
            assert texts(session_cache) == before, "texts are stored in the run alone"
            MADE[form] = (run, tmp_path / form, report)
        return MADE[form]

    return make


def left_over(tmp_path):
    return sorted(path.name for path in tmp_path.iterdir() if path.name.startswith("."))


def values(results):
    return {name: line["value"] for name, line in results["suites"]["suite"]["metrics"].items()}


@pytest.mark.parametrize("form", ["nf4", "int8", "gguf-q8_0"])
def test_an_exported_model_has_its_own_digest_and_results(form, exported):
    run, out, report = exported(form)
    tmp_path = out.parent
    found = texts(tmp_path)  # of the three models of the run
    assert found == sorted(run.records.rglob("forget_text-*.jsonl"))
    assert sorted(path.parent.name for path in found) == ["before", "oracle", "unlearned"]
    written = json.loads((out / "export.json").read_text())
    name = str(out / written["file"]) if form in FORMS else str(out)
    assert written["digest"] == source_digest(name) == report["digest"]
    assert written["digest"] != written["of"]["digest"] == source_digest(str(run.path))
    assert written["of"]["name"] == "mine"
    assert written["merge"]["adapter"] == file_digest(run.adapter / "adapter_model.safetensors")
    assert written["files"] == {
        path.name: file_digest(path) for path in out.iterdir() if path.name not in ("export.json", "results.json")
    }
    assert written["as_read"]["max_abs_logit_difference"] <= written["tolerance"]
    assert 0 < written["mean_kl"] < 0.1
    results = read_json(out / "results.json")
    assert results["models"]["unlearned"]["weights"] == written["digest"]
    assert results["models"]["unlearned"]["name"] == form
    assert results == report["results"]
    again = evaluate(name, run.config["suite"], target=run.config["model_name_or_path"], oracle=run.config["oracle"],
                     forget=run.config["forget"], retain=run.config["retain"], quiet=True)  # fmt: skip
    assert values(again) == values(results)
    assert values(report["model_results"]) == values(evaluate(run.path, quiet=True))
    assert values(report["model_results"]) != values(results)
    verify_adapter(run.adapter)  # its files are as they were
    assert not left_over(tmp_path)
    assert not [path for path in out.rglob("*") if path.is_file() and CANARY.encode() in path.read_bytes()]
    assert not [path for path in out.glob("*.json") if str(tmp_path) in path.read_text()]


def test_plain_transformers_loads_every_form(exported, tmp_path):
    with torch.no_grad():
        for form, worst in (("nf4", 1.0), ("int8", 0.2), ("gguf-q8_0", 0.2)):
            run, out, report = exported(form)
            if not (tmp_path / "merged").exists():  # all forms are of runs with the same weights
                merge(run.path, tmp_path / "merged")
                wanted = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()(IDS).logits
            which = {"gguf_file": report["file"]} if report["file"] else {}
            model = AutoModelForCausalLM.from_pretrained(out, **which).eval()
            assert 0 < float((model(IDS).logits - wanted).abs().max()) < worst
            assert AutoTokenizer.from_pretrained(out)("größer 12").input_ids == trained()("größer 12").input_ids
    out = exported("nf4")[1]
    config = json.loads((out / "config.json").read_text())
    assert config["quantization_config"]["bnb_4bit_quant_type"] == "nf4"
    assert (out / "model.safetensors").stat().st_size < (tmp_path / "merged" / "model.safetensors").stat().st_size


def test_a_merged_folder_is_exported_with_given_rows(run, exported, tmp_path):
    merge(run.path, tmp_path / "merged")
    digest = source_digest(str(tmp_path / "merged"))
    keys = {key: run.config[key] for key in ("forget", "retain", "suite", "oracle")}
    report = export(tmp_path / "merged", "gguf-q8_0", tmp_path / "out", target=run.config["model_name_or_path"],
                    quiet=True, **keys)  # fmt: skip
    assert report["of"] == {"name": "merged", "digest": digest}
    assert values(report["results"]) == pytest.approx(values(exported("gguf-q8_0")[2]["results"]), rel=1e-3)
    assert source_digest(str(tmp_path / "merged")) == digest
    with pytest.raises(ValueError, match="needs the split 'forget'"):
        export(tmp_path / "merged", "nf4", tmp_path / "no", suite=run.config["suite"], quiet=True)
    weights = run.path.parent / "target" / "model.safetensors"  # the model that still knows
    (tmp_path / "merged" / weights.name).write_bytes(weights.read_bytes())
    with pytest.raises(AdapterRefused, match=r"is not the file that merge\.json says was written"):
        export(tmp_path / "merged", "nf4", tmp_path / "no", measure=False, quiet=True)
    assert not (tmp_path / "no").exists()


def test_quantised_weights_are_dequantised_before_export(exported, tmp_path):
    report = export(exported("nf4")[1], "gguf-f32", tmp_path / "gguf", measure=False, quiet=True)
    assert report["max_abs_logit_difference"] < 1e-4
    again = export(tmp_path / "gguf" / report["file"], "int8", tmp_path / "int8", measure=False, quiet=True)
    assert 0 < again["mean_kl"] < 0.1
    assert not (tmp_path / "int8" / "results.json").exists()  # nothing was measured


def test_bfloat16_stays_bfloat16(run, tmp_path):
    model = load_base(module.ModelConfig(model_name_or_path=run.config["model_name_or_path"], dtype="bfloat16"))
    model.save_pretrained(tmp_path / "bf16")
    trained().save_pretrained(tmp_path / "bf16")
    for form in ("nf4", "gguf-bf16"):
        report = export(tmp_path / "bf16", form, tmp_path / form, measure=False, quiet=True)
        assert report["dtype"] == "bfloat16"
    assert report["max_abs_logit_difference"] == 0.0
    assert json.loads((tmp_path / "nf4" / "config.json").read_text())["dtype"] == "bfloat16"


def test_invalid_arguments_are_refused_and_leave_nothing(run, tmp_path):
    with pytest.raises(ValueError, match=r"form is 'gguf-q8'; did you mean 'gguf-q8_0'"):
        export(run.path, "gguf-q8", tmp_path / "out")
    with pytest.raises(ValueError, match="export has no key 'load_in_4bit'"):
        export(run.path, "nf4", tmp_path / "out", load_in_4bit=True)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    with pytest.raises(ValueError, match="never overwrites"):
        export(run.path, "nf4", tmp_path / "taken")
    for taken in (run.path, run.path.parent / "target"):
        with pytest.raises(ValueError, match="choose another folder"):
            export(run.path, "nf4", taken / "out")
        assert not left_over(taken)
    with pytest.raises(ValueError, match="is an adapter; export its run"):
        export(run.adapter, "nf4", tmp_path / "out", measure=False)
    assert not (tmp_path / "out").exists()
    assert not left_over(tmp_path)


def test_the_error_for_a_folder_of_gguf_names_the_file_to_give(exported):
    with pytest.raises(FileNotFoundError, match=r"holds GGUF and no config.json; name the file: .*model-q8_0.gguf"):
        evaluate(exported("gguf-q8_0")[1], quiet=True)


def test_the_error_for_a_missing_gguf_package_says_how_to_install_it(run, tmp_path, monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install \"llm-forget\[gguf\]\""):
        export(run.path, "gguf-q8_0", tmp_path / "out", measure=False, quiet=True)


def test_models_that_gguf_does_not_support_are_refused_before_merging_and_evaluating(run, tmp_path, monkeypatch):
    config = tmp_path / "target" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "attention_bias": True}))
    for late in ("merge", "evaluate"):
        monkeypatch.setattr(module, late, lambda *given, **named: pytest.fail("too late"))
    with pytest.raises(ValueError, match="biases of attention"):
        export(run.path, "gguf-q8_0", tmp_path / "out", quiet=True)
    assert not left_over(tmp_path)


def test_files_that_read_back_as_another_model_leave_nothing(run, tmp_path, monkeypatch):
    read = module.gguf.read_gguf

    def damaged(*arguments):
        model = read(*arguments)
        model.model.layers[0].self_attn.q_proj.weight.data[0] += 0.5
        return model

    monkeypatch.setattr(module.gguf, "read_gguf", damaged)
    with pytest.raises(ValueError, match=r"reading the files back gives another model.*nothing was written"):
        export(run.path, "gguf-q4_0", tmp_path / "out", measure=False, quiet=True)
    assert not (tmp_path / "out").exists()
    assert not left_over(tmp_path)


@pytest.mark.parametrize("form", ["nf4", "gguf-f32"])
def test_a_full_disk_has_its_exit_code_and_leaves_nothing(form, run, tmp_path, monkeypatch):
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    monkeypatch.setattr(module.bitsandbytes, "quantized", _limited(module.bitsandbytes.quantized, 20_000))
    monkeypatch.setattr(module.gguf, "write_gguf", _limited(module.gguf.write_gguf, 20_000))
    try:
        found = CliRunner().invoke(
            app, ["export", str(run.path), "--form", form, "--output_dir", str(tmp_path / "out"), "--no_measure"]
        )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert found.exit_code == 5, found.output
    assert not (tmp_path / "out").exists()
    assert not left_over(tmp_path)


def _limited(function, size):
    """From this call on no file may be larger."""

    def call(*arguments, **options):
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        return function(*arguments, **options)

    return call


def test_a_form_that_fails_a_verdict_of_the_model_is_reported_with_exit_code_1(run, exported, tmp_path):
    first = exported("nf4")[2]
    assert new_failures(first) == []
    model, form = values(first["model_results"])["forget_probability"], values(first["results"])["forget_probability"]
    bound = {"line": "forget_probability", "at_most" if model < form else "at_least": (model + form) / 2}
    suite = tmp_path / "strict.yaml"
    suite.write_text(yaml.safe_dump({**SUITE, "verdict": {"forgot": [bound]}}, sort_keys=False))
    options = {"form": "nf4", "output_dir": tmp_path / "out", "suite": suite}
    words = [str(word) for key, value in options.items() for word in (f"--{key}", value)]
    found = CliRunner().invoke(app, ["export", str(run.path), *words])
    assert found.exit_code == 1, found.output
    assert "nf4 fails what the model passed: suite strict, forgot: yes, now no" in found.output
    assert f"digest: {source_digest(str(tmp_path / 'out'))}" in found.output
    assert (tmp_path / "out" / "results.json").is_file()  # for the publisher to see
    assert CANARY not in found.output
