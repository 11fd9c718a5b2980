"""Several suites in one evaluation, their results, and every kind of probe from start to end."""

import json
import logging
import math
import shutil

import pytest
import yaml

from llm_forget.attacks.context import AttackContext
from llm_forget.core.run_directory import Run
from llm_forget.workflows.evaluate import evaluate
from tests.support.tiny_runs import CANARY, SUITE

pytestmark = pytest.mark.slow

EXTRA = {
    "probes": {
        "forget": {"probe": "logprobs", "split": "forget"},
        "holdout": {"probe": "logprobs", "split": "holdout"},
        "forget_gradients": {"probe": "gradients", "split": "forget", "limit": 3},
        "holdout_gradients": {"probe": "gradients", "split": "holdout", "limit": 3},
        "samples": {"probe": "generate", "split": "forget", "samples": 3, "temperature": 1.0, "max_new_tokens": 5},
        "rest": {"probe": "generate", "split": "forget", "prefix": 0.5, "max_new_tokens": 8},
        "asked": {"probe": "generate", "split": "forget", "asks": ["{prompt}", "Say: {prompt}"], "max_new_tokens": 5},
        "tops": {"probe": "logprobs", "split": "forget", "top": 300},
        "near": {"probe": "logprobs", "split": "neighbours", "optional": True},
        "read": {"probe": "judge", "generations": "samples"},
    },
    "metrics": {
        "auc": {
            "metric": "membership_auc",
            "members": "forget",
            "nonmembers": "holdout",
            "attack": "zlib",
            "goal": "keep",
        },
        "both": {"metric": "membership_two_models", "members": "forget", "nonmembers": "holdout", "goal": "lower"},
        "reference": {"metric": "membership_reference", "members": "forget", "nonmembers": "holdout", "goal": "lower"},
        "norms": {
            "metric": "membership_gradnorm",
            "members": "forget_gradients",
            "nonmembers": "holdout_gradients",
            "goal": "match_oracle",
        },
        "leak": {"metric": "leak_at_k", "generations": "samples", "k": 2, "goal": "match_oracle"},
        "rest": {"metric": "rouge", "generations": "rest", "goal": "match_oracle"},
        "kl": {"metric": "kl_to_oracle", "records": "tops", "goal": "match_oracle"},
        "facts": {"metric": "token_class_memorization", "records": "tops", "goal": "match_oracle"},
        "fact": {"metric": "fact_leak", "generations": "asked", "records": "tops", "goal": "match_oracle"},
        "asked": {"metric": "leak_at_k", "generations": "asked", "goal": "match_oracle"},
        "near": {"metric": "probability", "records": "near", "goal": "keep"},
        "perplexity": {"metric": "generated_perplexity", "judged": "read", "goal": "keep"},
    },
}


LIGHT = {
    "probes": {name: EXTRA["probes"][name] for name in ("forget", "holdout")},
    "metrics": {name: EXTRA["metrics"][name] for name in ("auc", "both")},
}


@pytest.fixture
def light(tmp_path):
    """A second suite, on the rows of `forget` and `holdout`, for tests of more than one."""
    (tmp_path / "light.yaml").write_text(yaml.safe_dump(LIGHT, sort_keys=False))
    return tmp_path / "light.yaml"


@pytest.fixture
def extra(tmp_path):
    content = {**EXTRA, "metrics": {f"line_{name}": line for name, line in EXTRA["metrics"].items()}}
    (tmp_path / "extra.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return tmp_path / "extra.yaml"


def test_every_kind_of_probe_gives_numbers_for_every_model_and_values_by_id(make_run, extra):
    run = make_run("run")
    lines = evaluate(run.path, extra, quiet=True)["suites"]["extra"]["metrics"]
    for name, line in lines.items():
        for found in (line, line["before"], line["oracle"]):
            assert found["n"] in (3, 5), name
            assert math.isfinite(found["value"]), name
    assert lines["line_both"]["before"]["value"] == 0.5  # nothing changed between a model and itself
    assert lines["line_reference"]["oracle"]["value"] == 0.5
    assert lines["line_kl"]["oracle"]["value"] == pytest.approx(0, abs=1e-6)
    assert lines["line_kl"]["value"] > 0.01
    assert "line_near" not in lines
    assert lines["line_facts"]["oracle"]["value"] == 0  # by definition
    assert lines["line_both"]["ci"][1] > lines["line_both"]["ci"][0]
    sampled = (next((run.records / "unlearned").glob("samples-*.jsonl"))).read_text().splitlines()
    assert len(sampled) == 1 + 5 * 3
    texts = {json.loads(line)["text"] for line in sampled[1:]}
    assert len(texts) > 5
    rows = json.loads(run.rows_file.read_text())["extra"]
    assert rows["line_rest"]["oracle"]["rows"]["ids"] == [f"forget{i}" for i in range(5)]
    assert set(rows["line_auc"]["unlearned"]) == {"members", "nonmembers"}
    assert rows["line_auc"]["unlearned"]["nonmembers"]["ids"] == [f"holdout{i}" for i in range(6)]
    assert len(rows["line_perplexity"]["before"]["rows"]["values"]) == 5
    assert CANARY not in run.rows_file.read_text()


def test_a_second_suite_is_added_and_a_repeated_suite_is_replaced(make_run, tmp_path, light):
    run = make_run("run")
    first = evaluate(run.path, quiet=True)
    both = evaluate(run.path, light, quiet=True)
    assert list(both["suites"]) == ["suite", "light"]
    assert both["suites"]["suite"] == first["suites"]["suite"]
    again = evaluate(run.path, quiet=True, limit=3)
    assert again["suites"]["suite"]["limit"] == 3
    assert again["suites"]["light"] == both["suites"]["light"]
    together = evaluate(run.path, f"{tmp_path / 'suite.yaml'},{light}", quiet=True)
    assert together["suites"] == both["suites"]
    assert set(json.loads(run.rows_file.read_text())) == {"suite", "light"}


def test_results_of_another_model_are_removed(make_run, make_model, light):
    run = make_run("run")
    evaluate(run.path, light, quiet=True)
    assert list(evaluate(run.path, quiet=True, oracle=make_model("another", 7))["suites"]) == ["suite"]


def test_a_suite_with_changed_rows_is_dropped_with_a_message(make_run, tmp_path, light, caplog, monkeypatch):
    # An earlier command in this process may have stopped the propagation of our log records.
    monkeypatch.setattr(logging.getLogger("llm_forget"), "propagate", True)
    run = make_run("run")
    evaluate(run.path, light, quiet=True)
    evaluate(run.path, quiet=True, retain=str(tmp_path / "holdout.jsonl"))
    lines = (tmp_path / "forget.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "forget.jsonl").write_text("".join(lines[:-1]))
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(SUITE, sort_keys=False))
    with caplog.at_level("WARNING", logger="llm_forget"):
        found = evaluate(run.path, tmp_path / "other.yaml", quiet=True)
    # 'suite' was asked for other rows than the run's, and says so.
    assert list(found["suites"]) == ["suite", "other"]
    assert found["suites"]["suite"]["overrides"] == ["retain"]
    assert set(json.loads(run.rows_file.read_text())) == {"suite", "other"}
    ours = [record for record in caplog.records if (record.name, record.levelname) == ("llm_forget", "WARNING")]
    (message,) = {record.getMessage() for record in ours}
    assert message.endswith("no longer holds suite 'light': the rows of 'forget' have changed since; evaluate it again")
    # The same rows in other files count as the same; data of one suite do not affect another suite.
    (tmp_path / "forget.jsonl").rename(tmp_path / "moved.jsonl")
    again = evaluate(run.path, light, quiet=True, forget=str(tmp_path / "moved.jsonl"))
    assert list(again["suites"]) == ["suite", "other", "light"]
    own = {**SUITE["probes"]["forget"], "split": "holdout"}
    suite = {"probes": {"forget": own}, "metrics": {"p": SUITE["metrics"]["forget_probability"]}}
    brought = make_run("brought", holdout=None)
    for name in ("one", "two"):
        content = {"data": {"holdout": str(tmp_path / f"{'retain' if name == 'one' else 'holdout'}.jsonl")}, **suite}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(content))
        last = evaluate(brought.path, tmp_path / f"{name}.yaml", quiet=True)
    assert list(last["suites"]) == ["one", "two"]


def test_two_suites_of_one_name_in_one_command_are_refused(make_run, tmp_path):
    run = make_run("run")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "suite.yaml").write_text((tmp_path / "suite.yaml").read_text())
    twins = [str(tmp_path / "suite.yaml"), str(tmp_path / "mine" / "suite.yaml")]
    with pytest.raises(
        ValueError, match=r"suite\.yaml' and '.*mine/suite\.yaml' are both called 'suite'.*; rename one"
    ):
        evaluate(run.path, twins, quiet=True)
    assert list(evaluate(run.path, [twins[0], twins[0]], quiet=True)["suites"]) == ["suite"]


def test_an_attacked_model_is_compared_with_the_target_revision_of_the_run(
    make_model, make_run, light, tmp_path, monkeypatch
):
    make_run("unused")  # for the rows
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "models--org--base"
    for name, seed in (("a" * 40, 4), ("b" * 40, 5)):
        shutil.copytree(make_model(name, seed), repository / "snapshots" / name)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("b" * 40)
    config = {"model_name_or_path": "org/base", "model_revision": "a" * 40, "max_length": 128}
    config |= {name: str(tmp_path / f"{name}.jsonl") for name in ("forget", "holdout")}
    run = Run.start(tmp_path / "run", "unlearn", config, config, False)
    run.finish()
    lines = AttackContext(run, str(light), tmp_path / "attack", plain={}).measure(str(tmp_path / ("a" * 40)))
    assert lines["both"]["value"] == 0.5  # nothing changed between a model and itself


def test_equally_named_probes_of_two_suites_are_stored_separately(make_run, tmp_path):
    run = make_run("run")
    evaluate(run.path, quiet=True)
    other = {**SUITE["probes"]["forget"], "split": "retain"}
    suite = {"probes": {"forget": other}, "metrics": {"p": SUITE["metrics"]["forget_probability"]}}
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(suite))
    assert evaluate(run.path, tmp_path / "other.yaml", quiet=True)["suites"]["other"]["metrics"]["p"]["n"] == 9
    assert len(list((run.records / "unlearned").glob("forget-*.jsonl"))) == 2


def test_lm_eval_tasks_are_lines_of_the_results(make_model, tmp_path, shared, monkeypatch):
    monkeypatch.setenv("LLM_FORGET_CACHE", str(tmp_path / "cache"))
    suite = {
        "lm_eval": {"piqa": {"task": "forget_piqa", "metric": "acc", "limit": 4, "goal": "keep"}},
        "verdict": {"kept": [{"line": "piqa", "at_least": 0.9, "of": "before"}]},
    }
    (tmp_path / "tasks.yaml").write_text(yaml.safe_dump(suite))
    long = [make_model(name, seed, max_position_embeddings=2048) for seed, name in enumerate(("one", "two", "three"))]
    data = {"data_path": str(shared / "data/icl"), "target": long[1], "oracle": long[2]}
    found = evaluate(long[0], tmp_path / "tasks.yaml", quiet=True, **data)
    line = found["suites"]["tasks"]["metrics"]["piqa"]
    assert (line["n"], line["before"]["n"], line["oracle"]["n"]) == (4, 4, 4)
    assert line["ci"][0] <= line["value"] <= line["ci"][1]
    assert found["suites"]["tasks"]["verdict"]["kept"]["answer"] in ("yes", "no")


@pytest.mark.usefixtures("their_tasks")
def test_an_unknown_task_is_refused_before_a_model_is_loaded(make_run, tmp_path):
    for task, sentence in (
        ({"task": "forget_piqua", "metric": "acc"}, "did you mean"),
        (
            {"task": "forget_piqa", "metric": "accuracy"},
            "has no metric",
        ),
    ):
        (tmp_path / "tasks.yaml").write_text(yaml.safe_dump({"lm_eval": {"x": {**task, "goal": "keep"}}}))
        with pytest.raises(ValueError, match=sentence):
            evaluate(make_run("run").path, tmp_path / "tasks.yaml", quiet=True)


def test_the_error_for_a_model_without_a_recipe_lists_the_missing_options(make_run, tmp_path):
    make_run("run")
    rows = {name: str(tmp_path / f"{name}.jsonl") for name in ("forget", "retain")}
    with pytest.raises(
        ValueError, match=r"needs the split 'forget'.*give --forget ROWS --retain ROWS,.*--target MODEL"
    ):
        evaluate(tmp_path / "target", tmp_path / "suite.yaml", quiet=True)
    with pytest.raises(ValueError, match=r"needs the split 'retain'.*give --retain ROWS,"):
        evaluate(tmp_path / "target", tmp_path / "suite.yaml", forget=rows["forget"], quiet=True)
    with pytest.raises((ValueError, FileNotFoundError), match="does not exist"):  # the first error is reported first
        evaluate("./nowhere", tmp_path / "suite.yaml", quiet=True)
    probes = {"some": {"probe": "logprobs", "split": "extra"}}
    metrics = {"p": {"metric": "probability", "records": "some", "goal": "keep"}}
    (tmp_path / "more.yaml").write_text(yaml.safe_dump({"probes": probes, "metrics": metrics}))
    with pytest.raises(ValueError, match=r"give --splits '\{extra: ROWS\}',"):
        evaluate(tmp_path / "target", tmp_path / "more.yaml", quiet=True)
    assert evaluate(tmp_path / "target", tmp_path / "suite.yaml", quiet=True, **rows)["suites"]["suite"]["metrics"]


def test_a_recipe_names_several_suites_with_commas(make_run, tmp_path, light):
    run = make_run("run", suite=f"{tmp_path / 'suite.yaml'}, {light}")
    assert list(evaluate(run.path, quiet=True)["suites"]) == ["suite", "light"]
