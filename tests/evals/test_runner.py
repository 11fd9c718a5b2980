"""What a model is, for the records kept of it: everything that changes a number, and nothing is taken for another."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from llm_forget.core.run_directory import Run
from llm_forget.data.template import Template
from llm_forget.evals.probes import progress
from llm_forget.evals.probes.inputs import Work, prepare
from llm_forget.evals.probes.progress import progress_line
from llm_forget.evals.records import row_subjects
from llm_forget.evals.runner import EvaluatedModel, measure
from llm_forget.evals.suite import Probe
from llm_forget.workflows.evaluate import _spread, evaluate
from tests.support.nudged_model import nudged

ROWS = [{"id": f"r{i}", "prompt": f"What is {i}?", "completion": f"It is {i}."} for i in range(3)]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LLM_FORGET_CACHE", str(tmp_path / "cache"))


def work(kind, tokenizer, **keys):
    keys |= {"max_new_tokens": 8} if kind == "generate" else {}
    probe = Probe(name=kind, probe=kind, split="forget", **keys)
    return prepare(probe, ROWS, tokenizer, Template(chat=False), max_length=None, stride=0)


def measured(subjects, kind, tokenizer, **keys):
    works = {kind: work(kind, tokenizer, **keys)}
    return measure(subjects, works, tokenizer, device=torch.device("cpu"), quiet=True)


@pytest.mark.slow
def test_one_name_in_two_precisions_is_two_models(tiny_folder, tiny_tokenizer, lora_args, cache):
    half, full = (lora_args(tiny_folder, dtype=dtype) for dtype in ("bfloat16", "float32"))
    together = measured(
        {"oracle": EvaluatedModel("oracle", half), "before": EvaluatedModel("before", full)}, "logprobs", tiny_tokenizer
    )
    oracle, before = (np.concatenate([r.logps for r in together[role]["logprobs"]]) for role in ("oracle", "before"))
    assert 0 < np.abs(oracle - before).max() < 0.1


@pytest.mark.slow
def test_records_of_every_kind_have_the_subjects_of_their_rows(tiny_folder, tiny_tokenizer, lora_args, cache):
    rows = [{**row, "subject": f"s{i // 2}"} for i, row in enumerate(ROWS[:3])]
    probes = {kind: {"probe": kind, "split": "forget"} for kind in ("logprobs", "gradients")}
    probes["generate"] = {"probe": "generate", "split": "forget", "max_new_tokens": 2}
    probes["judge"] = {"probe": "judge", "split": "forget", "generations": "generate"}
    works = {
        name: prepare(Probe(name=name, **keys), rows, tiny_tokenizer, Template(chat=False), max_length=None, stride=0)
        if name != "judge"
        else Work(Probe(name=name, **keys), [], [], "")
        for name, keys in probes.items()
    }
    subject = {"unlearned": EvaluatedModel("unlearned", lora_args(tiny_folder))}
    records = measure(subject, works, tiny_tokenizer, device=torch.device("cpu"), quiet=True)["unlearned"]
    assert {name: row_subjects(records[name]) for name in works} == {name: ["s0", "s0", "s1"] for name in works}
    assert not any("subject" in record.to_dict() for name in works for record in records[name])


@pytest.mark.slow
def test_another_end_of_generation_is_measured_again(tiny_folder, tiny_tokenizer, lora_args, cache):
    subject = EvaluatedModel("unlearned", lora_args(tiny_folder))
    (first, *_) = measured({"unlearned": subject}, "generate", tiny_tokenizer)["unlearned"]["generate"]
    assert first.n == 8
    file = tiny_folder / "generation_config.json"
    everything = list(range(len(tiny_tokenizer)))
    file.write_text(json.dumps({**json.loads(file.read_text()), "eos_token_id": everything}))
    again = replace(subject)  # its digests are made once
    (second, *_) = measured({"unlearned": again}, "generate", tiny_tokenizer)["unlearned"]["generate"]
    assert (second.n, second.text) == (1, "")
    assert again.key(work("logprobs", tiny_tokenizer)) == subject.key(work("logprobs", tiny_tokenizer))


@pytest.mark.slow
def test_another_end_of_sequence_token_is_other_work(tiny_tokenizer):
    from copy import deepcopy

    other = deepcopy(tiny_tokenizer)
    other.eos_token = "<pad>"
    assert work("generate", other).digest != work("generate", tiny_tokenizer).digest


@pytest.mark.slow
def test_running_text_has_a_suite_of_its_own(tiny_folder, cache, tmp_path):
    for name in ("forget", "retain"):
        (tmp_path / f"{name}.txt").write_text(f"The {name} book goes on and on. " * 8)
    data = {name: str(tmp_path / f"{name}.txt") for name in ("forget", "retain")}
    with pytest.raises(ValueError, match=r"row 'forget' is running text .* --suite text"):
        evaluate(tiny_folder, quiet=True, **data)
    metrics = evaluate(tiny_folder, "text", quiet=True, max_length=64, **data)["suites"]["text"]["metrics"]
    # 256 bytes and the end of the text in windows of 64 tokens: five passages, each a row.
    assert {line["n"] for line in metrics.values()} == {5}
    assert 0 < metrics["forget_probability"]["value"] < 0.05
    few = evaluate(tiny_folder, "copyright", quiet=True, max_length=64, limit=3, **data)["suites"]["copyright"]
    assert {few["probes"][name]["answers"] for name in ("forget", "forget_text", "retain")} == {3}


@pytest.mark.slow
def test_a_target_that_never_knew_the_rows_has_nothing_to_forget(tiny_folder, cache, tmp_path, capsys):
    for name in ("forget", "retain"):
        (tmp_path / f"{name}.txt").write_text(f"The {name} book goes on and on. " * 8)
    data = {name: str(tmp_path / f"{name}.txt") for name in ("forget", "retain")}
    same = str(tiny_folder)
    oracle = nudged(same, tmp_path / "oracle")
    verdict = evaluate(same, "text", target=same, oracle=oracle, max_length=64, **data)["suites"]["text"]["verdict"]
    assert [(verdict[q]["answer"], verdict[q]["before"]) for q in ("forgot", "kept")] == [("yes", "yes")] * 2
    assert capsys.readouterr().out.count("there was nothing to forget") == 1


@pytest.mark.slow
def test_results_list_overrides_of_the_keys_of_the_run(tiny_folder, cache, tmp_path):
    for name in ("forget", "retain"):
        (tmp_path / f"{name}.txt").write_text(f"The {name} book goes on and on. " * 8)
    run = Run.start(tmp_path / "run", "finetune", {"use_cpu": True}, {}, False)
    shutil.copytree(tiny_folder, run.model)
    run.finish()
    data = {name: str(tmp_path / f"{name}.txt") for name in ("forget", "retain")}
    first = evaluate(run.path, "text", quiet=True, **data)
    swapped = {"forget": data["retain"], "retain": data["forget"]}
    second = evaluate(run.path, "text", quiet=True, max_length=64, **swapped)
    assert (first["suites"]["text"]["overrides"], second["suites"]["text"]["overrides"]) == (
        ["forget", "retain"],
        ["forget", "max_length", "retain"],
    )
    answers = [found["suites"]["text"]["probes"]["forget"]["answers"] for found in (first, second)]
    assert answers == [1, 5]  # one text, or its five windows
    assert (
        first["suites"]["text"]["probes"]["forget"]["digest"] != second["suites"]["text"]["probes"]["forget"]["digest"]
    )
    assert str(tmp_path) not in run.results_file.read_text()


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("dtype", "bf16", "dtype is 'bf16'; allowed: float32, bfloat16"),
        ("load_in_4bit", "maybe", "'load_in_4bit' must be true or false, not 'maybe'"),
        ("max_length", "long", "'max_length' must be a number, not 'long'"),
        ("data_pth", "x", "no key 'data_pth'; did you mean 'data_path'"),
    ],
)
def test_an_unknown_key_or_a_value_of_the_wrong_type_is_refused(key, value, sentence):
    with pytest.raises(ValueError, match=sentence):
        evaluate("anything", quiet=True, **{key: value})


@pytest.mark.slow
def test_text_of_a_target_stays_with_its_own_run(tiny_folder, tiny_tokenizer, lora_args, cache, tmp_path):
    run = Run.start(tmp_path / "target", "finetune", {"model_name_or_path": str(tiny_folder)}, {}, overwrite=False)
    shutil.copytree(tiny_folder, run.model)
    run.finish()
    for kind in ("logprobs", "generate"):
        measured({"before": EvaluatedModel("before", lora_args(run.path))}, kind, tiny_tokenizer)
    measured({"before": EvaluatedModel("before", lora_args(run.path))}, "logprobs", tiny_tokenizer, top=2)
    kinds = {place: [json.loads(p.read_text().splitlines()[0])["kind"] for p in place.glob("*.jsonl")]
             for place in (run.records / "shared", tmp_path / "cache" / "records")}  # fmt: skip
    assert [sorted(found) for found in kinds.values()] == [["generate", "logprobs"], ["logprobs"]]


def test_the_answers_shown_are_of_different_people_and_facts():
    places = _spread(36, 3)
    assert len({place // 6 for place in places}) == len({place % 6 for place in places}) == 3
    assert _spread(2, 5) == [0, 1]
    assert _spread(1, 1) == [0]


@pytest.mark.slow
def test_an_evaluation_prints_its_progress_to_a_file(tiny_folder, cache, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(progress, "EVERY", 0.0)
    for name in ("forget", "retain"):
        (tmp_path / f"{name}.txt").write_text(f"The {name} book goes on and on. " * 8)
    data = {name: str(tmp_path / f"{name}.txt") for name in ("forget", "retain")} | {"max_length": 64}
    row = {"question": "Is it red?", "choices": ["yes", "no"], "answer": 1}
    (tmp_path / "questions.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(row))
    tasks = {"asked": {"task": "forget_multiple_choice", "metric": "acc", "goal": "keep"}}
    (tmp_path / "tasks.yaml").write_text(json.dumps({"lm_eval": tasks}))
    suites = ["text", str(tmp_path / "tasks.yaml")]
    evaluate(tiny_folder, suites, batch_size=2, data_path=str(tmp_path), **data)
    found = capsys.readouterr()
    lines = found.err.splitlines()
    assert [re.sub(r"\d:\d\d:\d\d", "T", line) for line in lines if "/forget:" in line] == [
        f"unlearned/forget: {done}/5, T left" for done in (2, 4, 5)
    ]
    assert lines[-1] == "unlearned/forget_multiple_choice: 4/4, 0:00:00 left"
    assert "left" not in found.out
    assert "goes on" not in found.err
    # Whoever waits for results only is told nothing, and half a minute is nothing to tell of.
    evaluate(tiny_folder, "text", batch_size=2, quiet=True, **{**data, "max_length": 32})
    monkeypatch.setattr(progress, "EVERY", 30.0)
    evaluate(tiny_folder, "text", batch_size=2, **{**data, "max_length": 48})
    assert "left" not in capsys.readouterr().err


def test_the_time_left_is_that_of_the_rows_measured_in_this_session():
    # 40 of 100 are done, 20 of them in these 50 seconds: 60 more take 150.
    assert progress_line("before/forget", 40, 100, 20, 50.0) == "before/forget: 40/100, 0:02:30 left"
    assert progress_line("before/forget", 100, 100, 20, 50.0) == "before/forget: 100/100, 0:00:00 left"
    assert progress_line("before/forget", 3, None, 3, 50.0) == "before/forget: 3"
