"""Attacks: unlearned model and oracle are attacked alike, the run itself stays as it was, and no text gets out."""

import json

import pytest
import yaml
from typer.testing import CliRunner

from llm_forget.attacks.excess import excess
from llm_forget.attacks.run import KINDS, _name as attack_name, attack
from llm_forget.cli.main import app
from llm_forget.core.run_directory import Run
from llm_forget.workflows.evaluate import evaluate
from llm_forget.workflows.finetune import finetune
from tests.support.tiny_runs import CANARY

pytestmark = pytest.mark.slow

RATE = {"learning_rate": 1e-2, "per_device_train_batch_size": 2, "use_cpu": True, "lora_r": 4}


@pytest.mark.long
def test_relearning_a_row_recovers_others_in_both_models(make_run, capsys, caplog):
    run = make_run("run", **RATE | {"learning_rate": 2e-2, "lora_r": 8})
    before = evaluate(run.path, quiet=True)
    found = attack(run.path, "relearn", share=0.2, num_train_epochs=50)
    line = found["metrics"]["forget_probability"]
    assert line["unlearned_attacked"]["value"] > 1.3 * line["unlearned"]
    assert line["oracle_attacked"]["value"] > 1.3 * line["oracle"]
    moved = [line[f"{role}_attacked"]["value"] - line[role] for role in ("unlearned", "oracle")]
    assert line["excess"] == pytest.approx(moved[0] - moved[1])
    assert found["metrics"]["retain_probability"]["excess"] is None
    assert line["unlearned_attacked"]["n"] == 4
    assert found["left_out"] == 1
    # One row of five, the same for both models, and none of its text anywhere.
    (folder,) = (run.path / "attacks").iterdir()
    ids = [Run.open(folder / role).provenance["data"]["train"]["ids"] for role in ("unlearned", "oracle")]
    assert ids[0] == ids[1]
    assert len(ids[0]) == 1
    assert json.loads((folder / "attack.json").read_text()) == found
    assert not [path for path in folder.rglob("*") if path.name in ("adapter", "checkpoints", "model")]
    shown = capsys.readouterr()
    assert CANARY not in shown.out + shown.err + caplog.text + (folder / "attack.json").read_text()
    assert json.loads(run.results_file.read_text())["suites"] == before["suites"]


def test_relearned_rows_are_not_measured(make_run):
    """Neither before the attack nor after it: a row that was trained on comes back in any model."""
    run = make_run("run", **RATE)
    everything = evaluate(run.path, quiet=True)["suites"]["suite"]["metrics"]["forget_probability"]
    found = attack(run.path, "relearn", share=0.4, num_train_epochs=1)
    (folder,) = (run.path / "attacks").iterdir()
    relearned = Run.open(folder / "unlearned").provenance["data"]["train"]["ids"]
    rows = json.loads(run.rows_file.read_text())["suite"]["forget_probability"]["unlearned"]["rows"]
    others = [value for name, value in zip(rows["ids"], rows["values"], strict=True) if name not in relearned]
    assert (len(relearned), len(others)) == (2, 3)
    line = found["metrics"]["forget_probability"]
    assert line["unlearned"] == pytest.approx(sum(others) / 3, rel=1e-4)
    assert line["unlearned"] != everything["value"]
    assert (line["unlearned_attacked"]["n"], line["oracle_attacked"]["n"], found["left_out"]) == (3, 3, 2)


@pytest.mark.parametrize("on", ["holdot", "nothere"])
def test_missing_rows_are_refused_before_any_measurement(make_run, on):
    run = make_run("run")
    with pytest.raises(ValueError, match=rf"on is '{on}'"):
        attack(run.path, "relearn", on=on)
    assert not run.records.exists()
    assert not (run.path / "attacks").exists()


def test_relearning_may_use_unrelated_rows(make_run):
    run = make_run("run", **RATE)
    found = attack(run.path, "relearn", on="holdout", num_train_epochs=1, seed=0, share=0.05, keep=True)
    (folder,) = (run.path / "attacks").iterdir()
    assert folder.name == "relearn-on-holdout-num_train_epochs-1-keep-True"  # what is as by default has no name
    assert (folder / "unlearned/adapter").is_dir()
    ids = Run.open(folder / "unlearned").provenance["data"]["train"]["ids"]
    assert ids == [f"holdout{i}" for i in range(6)]
    assert found["settings"]["on"] == "holdout"


def test_quantize_measures_the_merged_model_and_deletes_it(make_run):
    pytest.importorskip("bitsandbytes")
    run = make_run("run")
    found = attack(run.path, "quantize", bits="int8")
    line = found["metrics"]["forget_probability"]
    assert line["unlearned_attacked"]["value"] == pytest.approx(line["unlearned"], rel=0.2)
    assert line["unlearned_attacked"]["value"] != line["unlearned"]
    assert not (run.path / "attacks/quantize-bits-int8/merged").exists()


def test_a_prompting_attack_is_compared_with_the_plain_answer(make_run):
    run = make_run("run")
    lines = [attack(run.path, kind, limit=2)["metrics"] for kind in ("sample", "prefix", "paraphrase")]
    assert not run.results_file.exists()  # two rows are not what the run is judged by
    results = evaluate(run.path, "robustness", limit=2, quiet=True)["suites"]["robustness"]["metrics"]
    for (line,) in map(dict.values, lines):
        assert line["unlearned"] == results["forget_rouge"]["value"]
        assert line["oracle_attacked"]["value"] is not None
        assert line["unlearned_attacked"]["n"] == 2


def test_an_attack_on_a_sample_with_other_keys_or_another_suite_overwrites_no_other(make_run, tmp_path):
    run = make_run("run")
    line = {"metric": "probability", "records": "rows", "goal": "lower"}
    for name in ("short", "other"):
        probes = {"rows": {"probe": "logprobs", "split": "forget"}}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({"probes": probes, "metrics": {f"{name}_line": line}}))
    short, other = (str(tmp_path / f"{name}.yaml") for name in ("short", "other"))
    limits = [{"suite": short}, {"suite": short, "limit": 2}, {"suite": other, "limit": 2}]
    answers = [attack(run.path, "template", **arguments) for arguments in limits]
    answers.append(attack(run.path, "template", suite=short, limit=2, overrides={"max_length": 96}))
    written = [json.loads(path.read_text()) for path in run.path.glob("attacks/*/attack.json")]
    assert len(written) == 4
    assert all(answer in written for answer in answers)
    assert [set(answer["metrics"]) for answer in answers[1:3]] == [{"short_line"}, {"other_line"}]
    assert [answer["metrics"]["short_line"]["unlearned_attacked"]["n"] for answer in answers[:2]] == [5, 2]


def test_different_attacks_have_different_folders():
    asked = [
        ("template", {}, None, None, {}),
        ("template", {}, "tofu", None, {}),
        ("template", {}, "a/mine.yaml", None, {}),
        ("template", {}, "b/mine.yaml", None, {}),
        ("template", {}, "a_mine.yaml", None, {}),
        ("template", {}, "/home/somebody/mine.yaml", None, {}),
        ("template", {}, "/home/another/mine.yaml", None, {}),
        ("template", {"prompt_template": "<{prompt}>"}, None, None, {}),
        ("template", {"prompt_template": "[{prompt}]"}, None, None, {}),
        ("template", {"prompt_template": f"{'x' * 90} {{prompt}} one"}, None, None, {}),
        ("template", {"prompt_template": f"{'x' * 90} {{prompt}} two"}, None, None, {}),
        ("template", {}, None, 5, {}),
        ("template", {}, None, None, {"max_length": 9}),
        ("template", {}, None, None, {"max_length": 8}),
        ("template", {"chat": True}, None, None, {}),
    ]
    names = [attack_name(*one) for one in asked]
    assert len(set(names)) == len(names)
    assert names[:2] == ["template", "template-suite-tofu"]
    assert names[-4] == "template-limit-5"
    assert names[-3].startswith("template-keys-")
    assert all(len(name) <= 120 and "/" not in name and "somebody" not in name for name in names)


def test_the_template_attack_changes_the_prompt(make_run):
    run = make_run("run")
    line = attack(run.path, "template", prompt_template="<{prompt}> ")["metrics"]["forget_probability"]
    assert line["unlearned_attacked"]["value"] != line["unlearned"]
    assert line["oracle_attacked"]["value"] != line["oracle"]


def test_access_to_both_models_reveals_deleted_rows(make_run):
    line = attack(make_run("run").path, "two_models")["metrics"]["mia_loss"]
    assert 0 <= line["unlearned_attacked"]["value"] <= 1
    assert line["oracle_attacked"]["ci"]


def test_texts_of_attacked_models_are_written_neither_to_the_cache_nor_to_results_of_the_oracle(
    make_run, own_cache, tmp_path
):
    keys = {"train": str(tmp_path / "retain.jsonl"), "num_train_epochs": 1, "save_strategy": "no", "use_cpu": True}
    run = make_run("run")
    oracle = finetune(model_name_or_path=str(tmp_path / "target"), output_dir=str(tmp_path / "whole"), **keys)
    attack(run.path, "template", overrides={"oracle": str(oracle.path)})
    heads = [json.loads(file.open().readline()) for file in own_cache.rglob("*.jsonl")]
    assert heads
    assert not [head for head in heads if head["kind"] == "generate"]
    assert not oracle.results_file.exists()
    assert not run.results_file.exists()


def test_attacked_models_are_measured_in_the_precision_of_the_run(make_run):
    pytest.importorskip("bitsandbytes")
    form = "User: {prompt}\nAssistant: "
    run = make_run("run", load_in_8bit=True, prompt_template=form, use_chat_template=False)
    # The same question once more: nothing but another precision could change the answer.
    line = attack(run.path, "template", prompt_template=form)["metrics"]["forget_probability"]
    assert line["unlearned_attacked"]["value"] == line["unlearned"]
    assert line["oracle_attacked"]["value"] == line["oracle"]


def attacked(unlearned, after, oracle, oracle_after):
    line = {"goal": "match_oracle", "metric": "probability", "unlearned": unlearned, "oracle": oracle}
    return line | {"unlearned_attacked": {"value": after}, "oracle_attacked": {"value": oracle_after}}


def test_an_attack_without_effect_has_no_excess_for_any_distance_of_the_models():
    assert excess("p", attacked(0.4, 0.4, 0.1, 0.1)) == 0
    assert excess("p", attacked(0.1, 0.5, 0.2, 0.3)) == pytest.approx(0.3)


@pytest.mark.parametrize(
    "about",
    [{"goal": "keep"}, {"goal": "higher"}, {"oracle_attacked": None}, {"unlearned": None}]
    + [{"metric": name} for name in ("repetition", "silence", "generated_perplexity", "membership_auc", "priv_leak")],
)
def test_lines_that_do_not_measure_knowledge_have_no_excess(about):
    assert excess("p", attacked(0.1, 0.5, 0.2, 0.3) | about) is None


def test_without_an_oracle_the_excess_is_none(make_run):
    line = attack(make_run("run", oracle=None).path, "prefix", limit=2)["metrics"]["forget_rouge"]
    assert (line["oracle_attacked"], line["excess"]) == (None, None)


@pytest.mark.parametrize(
    ("kind", "settings", "sentence"),
    [
        ("relern", {}, "did you mean 'relearn'"),
        ("relearn", {"shar": 0.1}, "did you mean 'share'"),
        ("relearn", {"share": 0.0}, "above 0 and below 1"),
        ("relearn", {"share": 1}, "above 0 and below 1"),
        ("quantize", {"bits": "int4"}, "bits is 'int4'; allowed: nf4, int8"),
        ("quantize", {"bits": 4}, "bits is '4'; allowed: nf4, int8"),
        ("sample", {"suite": "demo"}, "leave --suite out"),
        ("relearn", {"suite": "basic,demo"}, "measures one suite"),
    ],
)
def test_invalid_attacks_are_refused(make_run, kind, settings, sentence):
    run = make_run("run")
    with pytest.raises(ValueError, match=sentence):
        attack(run.path, kind, **settings)
    assert not (run.path / "attacks").exists()
    assert not run.records.exists()  # refused before anything was measured


def test_an_option_of_another_attack_is_refused_with_the_names_of_these_attacks(make_run):
    arguments = ["attack", str(make_run("run").path), "--kind", "quantize", "--share", "0.1"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert (
        "quantize has no option --share, which belongs to prune and relearn; options of quantize: --bits, --keep"
        in result.output
    )


def test_only_an_unlearned_run_can_be_attacked(tmp_path):
    Run.start(tmp_path / "run", "finetune", {}, {}, False).finish()
    with pytest.raises(ValueError, match="only an unlearn run can be attacked"):
        attack(tmp_path / "run", "relearn")


def test_the_command_prints_both_models_before_and_after(make_run):
    result = CliRunner().invoke(app, ["attack", str(make_run("run").path), "--kind", "prefix", "--limit", "2"])
    assert result.exit_code == 0, result.output
    assert "attack prefix, suite robustness" in result.output
    assert CANARY not in result.output


def test_every_attack_has_a_docstring():
    assert {entry.name for entry in KINDS} == {
        "relearn", "quantize", "sample", "prefix", "paraphrase", "template", "two_models", "prune", "finetune", "merge"
    }  # fmt: skip
    assert all(entry.function.__doc__ for entry in KINDS)
