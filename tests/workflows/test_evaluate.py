"""Evaluation end to end on tiny models: each row measured once, one model in memory, no text outside the records."""

import json

import pytest
import yaml

from llm_forget.core import formats
from llm_forget.core.errors import ConfigError
from llm_forget.core.formats.results import Results
from llm_forget.evals import runner as measuring
from llm_forget.evals.suite import load_suite
from llm_forget.workflows.evaluate import evaluate
from tests.support.tiny_runs import CANARY, SUITE, rows

pytestmark = pytest.mark.slow


def only(results):
    """Return the results of the only suite of an evaluation."""
    (found,) = results["suites"].values()
    return found


@pytest.fixture
def forwards(monkeypatch):
    """How often each kind of probe ran, and how many models were loaded."""
    counts = {"probe_logprobs": 0, "probe_generate": 0, "load_base": 0}
    for name in counts:
        original = getattr(measuring, name)

        def counting(*args, _name=name, _original=original, **kwargs):
            counts[_name] += 1
            return _original(*args, **kwargs)

        monkeypatch.setattr(measuring, name, counting)
    return counts


def test_results_contain_before_unlearned_and_oracle_also_after_a_record_file_was_damaged(make_run):
    run = make_run("run")
    results = evaluate(run.path, quiet=True)
    assert json.loads(run.results_file.read_text()) == results
    line = only(results)["metrics"]["forget_probability"]
    assert (line["n"], line["n_unscored"]) == (5, 0)
    assert line["ci"][0] <= line["value"] <= line["ci"][1]
    assert len({line["value"], line["before"]["value"], line["oracle"]["value"]}) == 3
    assert only(results)["metrics"]["forget_quality"]["oracle"]["value"] == 1.0
    assert only(results)["metrics"]["retain_probability"]["n"] == 4
    assert only(results)["verdict"]["forgot"]["answer"] in ("yes", "no")
    names = {role: model["name"] for role, model in results["models"].items()}
    assert names == {"before": "target", "unlearned": "run", "oracle": "oracle"}
    for role in ("before", "unlearned", "oracle"):
        assert {p.name.rpartition("-")[0] for p in (run.records / role).iterdir()} == set(SUITE["probes"])
    (path,) = (run.records / "unlearned").glob("forget-*.jsonl")
    path.write_bytes(path.read_bytes()[:-40])
    assert only(evaluate(run.path, quiet=True))["metrics"] == only(results)["metrics"]
    assert len(path.read_text().splitlines()) == 6


def test_before_equals_the_target_evaluated_alone_and_no_output_has_text_of_the_rows(
    make_run, own_cache, tmp_path, monkeypatch, capsys
):
    run = make_run("run")
    with_adapter_off = only(evaluate(run.path))["metrics"]
    output = capsys.readouterr()
    assert CANARY not in output.out + output.err + run.results_file.read_text()
    assert str(tmp_path) not in run.results_file.read_text()
    cached = list(own_cache.rglob("*.jsonl"))
    assert cached
    for path in cached:
        assert CANARY not in path.name
        assert CANARY not in path.read_text()
    monkeypatch.setenv("LLM_FORGET_CACHE", str(tmp_path / "another cache"))
    alone = only(evaluate(tmp_path / "target", tmp_path / "suite.yaml", quiet=True, **data(tmp_path)))["metrics"]
    for name in ("forget_probability", "ratio", "retain_probability", "forget_rouge"):
        assert with_adapter_off[name]["before"]["value"] == alone[name]["value"]


def data(folder):
    return {name: str(folder / f"{name}.jsonl") for name in ("forget", "retain")} | {"max_length": 128}


def test_each_model_and_probe_is_measured_once_and_other_rows_again(make_run, forwards, own_cache, tmp_path):
    first = make_run("first")
    evaluate(first.path, quiet=True)
    assert forwards == {"probe_logprobs": 12, "probe_generate": 3, "load_base": 2}
    evaluate(first.path, quiet=True)
    assert forwards["load_base"] == 2
    # Another run on the same target: numbers of target and oracle are known already; text is in no shared place.
    evaluate(make_run("second", seed=1).path, quiet=True)
    assert forwards == {"probe_logprobs": 16, "probe_generate": 6, "load_base": 4}
    # A new metric on the old probes costs no pass.
    suite = {
        **SUITE,
        "metrics": {"em": {"metric": "exact_memorization", "records": "forget", "goal": "lower"}},
        "verdict": {},
    }
    (tmp_path / "more.yaml").write_text(yaml.safe_dump(suite, sort_keys=False))
    evaluate(first.path, tmp_path / "more.yaml", quiet=True)
    assert forwards["load_base"] == 4
    (tmp_path / "forget.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows("forget", 4)))
    metrics = evaluate(first.path, quiet=True)["suites"]["suite"]["metrics"]
    assert metrics["forget_probability"]["n"] == 4
    assert forwards["probe_logprobs"] == 16 + 9  # not of the retain rows


def test_a_limit_is_the_number_of_rows_of_every_probe(make_run, tmp_path):
    results = evaluate(make_run("run").path, quiet=True, limit=3)
    assert only(results)["limit"] == 3
    assert {line["n"] for line in only(results)["metrics"].values()} == {3}
    with pytest.raises(ValueError, match="at least 1"):
        evaluate(tmp_path / "run", quiet=True, limit=0)


def test_the_models_are_never_in_memory_together(make_run, monkeypatch):
    import gc

    original, alive = measuring.load_base, []

    def watched(model_args):
        from transformers import LlamaForCausalLM

        gc.collect()
        alive.append(sum(type(o) is LlamaForCausalLM for o in gc.get_objects()))
        return original(model_args)

    run = make_run("run")
    monkeypatch.setattr(measuring, "load_base", watched)
    evaluate(run.path, quiet=True)
    assert len(alive) == 2
    assert alive[1] == alive[0]


def test_without_an_oracle_the_verdict_is_inconclusive(make_run, capsys):
    results = evaluate(make_run("run", oracle=None).path)
    assert results["models"]["oracle"] is None
    assert only(results)["metrics"]["forget_quality"]["value"] is None
    assert only(results)["metrics"]["forget_quality"]["n"] == 0
    assert only(results)["verdict"]["forgot"]["answer"] == "inconclusive"
    assert "no oracle given: results cannot be compared" in capsys.readouterr().out


def test_text_is_shown_only_on_request_and_only_in_the_terminal(make_run, capsys):
    run = make_run("run")
    evaluate(run.path, show_text=2)
    output = capsys.readouterr().out
    assert output.count(CANARY) == 2
    assert "forget3" in output
    assert "forget1" not in output
    assert CANARY not in run.results_file.read_text()


def test_an_oracle_of_another_vocabulary_is_refused(make_run, tmp_path):
    run = make_run("run")
    other = json.loads((tmp_path / "oracle/tokenizer.json").read_text())
    other["model"]["vocab"]["extra"] = len(other["model"]["vocab"])
    (tmp_path / "oracle/tokenizer.json").write_text(json.dumps(other))
    with pytest.raises(ValueError, match="oracle model 'oracle' has another vocabulary"):
        evaluate(run.path, quiet=True)


def test_several_oracles_are_measured_like_one_and_the_column_is_their_mean(make_run, make_model, tmp_path):
    paths = [str(tmp_path / "oracle"), make_model("second", 2), make_model("third", 3)]
    run = make_run("run", oracle=paths)
    results = evaluate(run.path, quiet=True)
    metrics = only(results)["metrics"]
    line = metrics["forget_probability"]
    alone = [only(evaluate(run.path, oracle=path, quiet=True, keep=False))["metrics"] for path in paths]
    assert line["oracles"] == [one["forget_probability"]["oracle"]["value"] for one in alone]
    assert line["oracle"]["value"] == pytest.approx(sum(line["oracles"]) / 3)
    assert only(results)["verdict"]["forgot"]["findings"][0]["compared_with"] == line["oracle"]["value"]
    quality = metrics["forget_quality"]
    assert quality["value"] == pytest.approx(sum(one["forget_quality"]["value"] for one in alone) / 3)
    assert quality["between_oracles"] == quality["oracle"]["value"] == pytest.approx(sum(quality["oracles"]) / 3)
    assert "between_oracles" not in line
    assert [model["name"] for model in results["models"]["oracles"]] == ["oracle", "second", "third"]
    assert results["models"]["oracle"] == results["models"]["oracles"][0]
    assert {path.name for path in run.records.iterdir()} == {"before", "unlearned", "oracle", "oracle_1", "oracle_2"}
    assert formats.read_content(run.results_file, Results) == results


def test_one_oracle_leaves_results_as_they_were(make_run, tmp_path):
    results = evaluate(make_run("run", oracle=[str(tmp_path / "oracle")]).path, quiet=True, keep=False)
    again = evaluate(make_run("again").path, quiet=True, keep=False)
    assert only(results)["metrics"] == only(again)["metrics"]
    assert set(results["models"]) == {"before", "unlearned", "oracle"}
    assert not {"oracles", "between_oracles"} & {*only(results)["metrics"]["forget_quality"]}


def test_oracles_of_equal_weights_are_refused(make_run, make_model, tmp_path):
    run = make_run("run", oracle=[str(tmp_path / "oracle"), make_model("copy", 1)])
    with pytest.raises(ConfigError, match="oracles 'oracle' and 'copy' have the same weights"):
        evaluate(run.path, quiet=True)


def test_the_target_is_refused_as_its_own_oracle(make_run, tmp_path):
    run = make_run("run", oracle=[str(tmp_path / "oracle"), str(tmp_path / "target")])
    with pytest.raises(ConfigError, match="oracle 'target' has the weights of the target, which was trained on"):
        evaluate(run.path, quiet=True)


def test_a_further_oracle_of_another_vocabulary_is_refused(make_run, make_model, tmp_path):
    run = make_run("run", oracle=[str(tmp_path / "oracle"), make_model("second", 2)])
    other = json.loads((tmp_path / "second/tokenizer.json").read_text())
    other["model"]["vocab"]["extra"] = len(other["model"]["vocab"])
    (tmp_path / "second/tokenizer.json").write_text(json.dumps(other))
    with pytest.raises(ConfigError, match="oracle model 'second' has another vocabulary"):
        evaluate(run.path, quiet=True)


def test_a_missing_split_is_named(make_run, tmp_path):
    suite = {**SUITE, "probes": {**SUITE["probes"], "more": {"probe": "logprobs", "split": "forget_perturbed"}}}
    (tmp_path / "more.yaml").write_text(yaml.safe_dump(suite, sort_keys=False))
    with pytest.raises(ValueError, match=r"needs the split 'forget_perturbed'.*allowed: forget, retain"):
        evaluate(make_run("run").path, tmp_path / "more.yaml", quiet=True)


def test_splits_of_the_run_override_those_of_the_suite(make_run, tmp_path):
    probes = {"more": {"probe": "logprobs", "split": "extra"}}
    metrics = {"p": {"metric": "probability", "records": "more", "goal": "lower"}}
    suite = {"data": {"extra": str(tmp_path / "absent.jsonl")}, "probes": probes, "metrics": metrics}
    (tmp_path / "more.yaml").write_text(yaml.safe_dump(suite, sort_keys=False))
    run = make_run("run", splits={"extra": str(tmp_path / "retain.jsonl")})
    assert only(evaluate(run.path, tmp_path / "more.yaml", quiet=True))["metrics"]["p"]["n"] == 9


def test_a_missing_column_is_named_by_row_and_not_by_text(make_run, tmp_path):
    broken = [{k: v for k, v in row.items() if k != "perturbed_answer"} for row in rows("forget", 3)]
    (tmp_path / "forget.jsonl").write_text("".join(json.dumps(row) + "\n" for row in broken))
    with pytest.raises(ValueError, match="row 'forget0' has no column 'perturbed_answer'") as error:
        evaluate(make_run("run").path, quiet=True)
    assert CANARY not in str(error.value)


def test_an_unfinished_run_is_refused(make_run):
    run = make_run("run")
    run.state_file.write_text(json.dumps({**run.state, "status": "running"}))
    with pytest.raises(ValueError, match="is incomplete"):
        evaluate(run.path, quiet=True)


def test_an_adapter_of_another_base_is_refused(make_run, make_model):
    run = make_run("run")
    make_model("target", 7)
    with pytest.raises(ValueError, match="base"):
        evaluate(run.path, quiet=True)


def test_the_tofu_suite_runs_on_a_folder_and_measures_each_probe_once(
    make_model, shared, tmp_path, monkeypatch, forwards
):
    monkeypatch.setenv("LLM_FORGET_CACHE", str(tmp_path / "cache"))
    source = {"path": "locuslab/TOFU"}
    results = evaluate(
        make_model("tofu", 0, max_position_embeddings=2048),
        "tofu",
        limit=2,
        data_path=str(shared / "data/tofu"),
        forget={**source, "name": "forget01"},
        splits={"forget_perturbed": {**source, "name": "forget01_perturbed"}},
        quiet=True,
    )
    kinds = [probe.probe for probe in load_suite("tofu").probes.values()]
    generating = kinds.count("generate")
    # 20 metrics and more, and one pass for each probe; one model, loaded once.
    assert forwards == {
        "probe_logprobs": len(kinds) - generating, "probe_generate": generating, "load_base": 1
    }  # fmt: skip
    lines = only(results)["metrics"]
    beside_others = {"forget_quality", "kl_to_oracle", "fact_leak"}  # there are no other models
    beside_others |= {"privacy_score", "fluency", "utility_score", "aggregate"}
    assert [name for name, line in lines.items() if name not in beside_others and line["n"] != 2] == []
    assert 0 < lines["authors_probability"]["value"] < 1
    assert lines["forget_quality"]["value"] is None


def test_the_demo_suite_runs_on_the_built_in_people(tmp_path, monkeypatch):
    monkeypatch.setenv("LLM_FORGET_CACHE", str(tmp_path / "cache"))
    people = "?people=8&forget=2&facts=2"
    splits = {name: f"builtin:demo/{name}{people}" for name in ("forget", "retain")}
    results = evaluate("builtin:demo-llama", "demo", quiet=True, limit=4, **splits)
    assert only(results)["metrics"]["forget_ratio"]["n"] == 4
    assert only(results)["metrics"]["forget_probability"]["value"] < 0.01
