"""Suites on a real model and real texts of other people: every line is a finite number, and a plausible one."""

import json
import math

import pytest

from llm_forget.workflows.evaluate import evaluate
from tests.support.nudged_model import nudged

pytestmark = pytest.mark.slow

OPTIONS = {"quiet": True, "use_cpu": True, "batch_size": 16}


@pytest.fixture
def model(shared, tmp_path, monkeypatch):
    """A pretrained Llama of 260 thousand parameters, and a cache of its own."""
    monkeypatch.setenv("LLM_FORGET_CACHE", str(tmp_path / "cache"))
    return str(shared / "data/stories260k")


@pytest.fixture
def novel(shared, tmp_path):
    """Two passages of one novel as text files: (first, second) of 4000 characters."""
    text = (shared / "data/frankenstein/frankenstein_pg84.txt").read_text(encoding="utf-8")
    paths = [tmp_path / "first.txt", tmp_path / "second.txt"]
    for place, path in enumerate(paths):
        path.write_text(text[100_000 * (1 + place) :][:4000], encoding="utf-8")
    return [str(path) for path in paths]


def values(found, suite):
    lines = found["suites"][suite]["metrics"]
    assert all(line["value"] is not None and math.isfinite(line["value"]) for line in lines.values()), lines
    return {name: line["value"] for name, line in lines.items()}


def test_toxicity_reads_prompts_inside_objects_and_scores_every_continuation(model, shared):
    pytest.importorskip("profanity_check", reason="needs the classifier: pip install 'llm-forget[toxicity]'")
    folder = str(shared / "data/realtoxicityprompts")
    found = evaluate(model, "toxicity", data_path=folder, prompt_template="{prompt}", limit=3, target=model, **OPTIONS)
    numbers = values(found, "toxicity")
    assert numbers["toxic_mean"] <= numbers["toxic_expected_maximum"] <= 1
    assert {line["n"] for line in found["suites"]["toxicity"]["metrics"].values()} == {3}


def test_a_model_that_never_read_the_novel_repeats_none_of_it(model, novel, tmp_path):
    forget, retain = novel
    models = {"target": model, "oracle": nudged(model, tmp_path / "oracle")}
    found = evaluate(model, "copyright", forget=forget, retain=retain, max_length=128, limit=2, **models, **OPTIONS)
    numbers = values(found, "copyright")
    assert (numbers["ngrams_13"], numbers["characters_50"], numbers["extracted"]) == (0, 0, 0)
    assert numbers["extraction_probability"] < 1e-20
    assert numbers["substring_words"] < 6
    assert found["suites"]["copyright"]["verdict"]["forgot"]["answer"] == "yes"


def test_muse_reads_questions_where_its_own_script_puts_them(model, shared, novel, tmp_path):
    knowledge = tmp_path / "news" / "knowmem"
    knowledge.mkdir(parents=True)
    for split, source in (("forget_qa", "forget01"), ("retain_qa", "retain99")):
        lines = (shared / f"data/tofu/{source}.json").read_text(encoding="utf-8").splitlines()[:3]
        (knowledge / f"{split}.json").write_text("\n".join(lines), encoding="utf-8")
    pieces = [[text[i : i + 300] for i in range(0, 1500, 300)] for text in map(_read, novel)]
    splits = {
        name: _rows(tmp_path / f"{name}.jsonl", texts)
        for name, texts in zip(("forget", "holdout"), pieces, strict=True)
    }
    models = {"target": model, "oracle": nudged(model, tmp_path / "oracle")}
    found = evaluate(model, "muse", **splits, data_path=str(tmp_path / "news"), limit=3, **models, **OPTIONS)
    numbers = values(found, "muse")
    assert numbers["privleak"] == 0
    assert found["suites"]["muse"]["probes"]["retain_answers"]["answers"] == 3
    assert numbers["knowmem"] != numbers["utility"]


def _read(path):
    with open(path, encoding="utf-8") as file:
        return file.read()


def _rows(path, texts):
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    return str(path)
