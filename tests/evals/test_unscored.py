"""A model that gives no probabilities is unscored everywhere: it has not forgotten, and nothing says that it has."""

import json
import math

import numpy as np
import pytest
import yaml

from llm_forget.core import resources
from llm_forget.evals.compute_metrics import compute_lines
from llm_forget.evals.distributions import Distributions
from llm_forget.evals.metrics import METRICS
from llm_forget.evals.policy import verify
from llm_forget.evals.records import (
    GenerationRecord,
    GradientRecord,
    TokenRecord,
    load_records,
    row_means,
    write_records,
)
from llm_forget.evals.stats import Estimate
from llm_forget.evals.suite import parse_suite
from llm_forget.workflows.evaluate import evaluate
from tests.support.answers import Answer
from tests.support.tiny_runs import SUITE

NAN = float("nan")


def answer(row, logps):
    n = len(logps)
    values = np.array(logps, dtype=np.float32)
    # Hits, as argmax of NaN gives them: one of them true, none of them meant.
    top = Distributions(np.zeros((n, 1), np.int32), values[:, None], np.full(n, -1.0, np.float32))
    words = Answer("in the town")
    return TokenRecord(row, 0, values, np.arange(n) == 0, values - 1, np.ones(n, np.float32), top, 9, words)


def records_of(kind):
    """Row ``good`` and row ``broken``."""
    if "GenerationRecord" in kind:
        reference = "one two three four five six " * 9
        said = GenerationRecord("good", 0, "one two three four five six", 6, reference, columns={"fact": "two"})
        return [said, GenerationRecord("broken", 0, "", 1, reference, broken=True, columns=said.columns)]
    if "GradientRecord" in kind:
        return [GradientRecord("good", 0, {"2": 1.0}), GradientRecord("broken", 0, {"2": NAN})]
    # Only one token of four: a mean over the lowest, the first or the last tokens could miss it.
    return [answer("good", [-1.0, -2.0, -0.5, -0.1]), answer("broken", [-1.0, NAN, -0.5, -0.1])]


OF_RECORDS = [entry.name for entry in METRICS if "Record" in str(entry.function.__annotations__)]


@pytest.mark.slow
@pytest.mark.parametrize("name", OF_RECORDS)
def test_a_row_without_probabilities_is_unscored_in_every_metric_of_records(name):
    function, kinds = METRICS.get(name).function, METRICS.get(name).function.__annotations__
    inputs = {key: records_of(kind) for key, kind in kinds.items() if "Record" in str(kind)}
    settings = {"suffix": 1} if name == "discoverable_extraction" else {}
    found = function(**inputs, **settings)
    if isinstance(found, Estimate):
        assert found.n_unscored >= 1
        for rows in found.rows.values():
            assert np.isnan(rows).tolist() == [False, True]
    else:
        assert np.isnan(found).tolist() == [False, True]


def test_a_metric_of_another_package_need_not_know():
    rows = row_means(records_of("TokenRecord"), lambda record: float(record.hits.mean()))
    np.testing.assert_array_equal(rows, [0.25, NAN])


def test_what_follows_the_judged_tokens_may_be_certain():
    certain = answer("a", [0.0, -np.inf])  # not broken: a token may be impossible
    assert not certain.broken
    assert METRICS.get("extraction_strength").function([certain]) == [0.0]


def test_nan_survives_the_record_file_and_the_results_as_unscored(tmp_path):
    write_records(tmp_path / "forget.jsonl", "logprobs", "k", records_of("TokenRecord"))
    write_records(tmp_path / "text.jsonl", "generate", "k", records_of("GenerationRecord"))
    read = {name: load_records(tmp_path / f"{name}.jsonl") for name in ("forget", "text")}
    assert np.isnan(read["forget"][1].logps).tolist() == [False, True, False, False]
    assert [record.broken for record in read["text"]] == [False, True]
    metrics = {
        "strength": {"metric": "extraction_strength", "records": "forget", "goal": "match_oracle"},
        "silence": {"metric": "silence", "generations": "text", "goal": "match_oracle"},
    }
    probes = {"forget": {"probe": "logprobs", "split": "forget"}, "text": {"probe": "generate", "split": "forget"}}
    lines = compute_lines(parse_suite({"probes": probes, "metrics": metrics}, name="s"), read)
    for line in lines.values():
        found = json.loads(json.dumps(line.to_dict(), allow_nan=False))
        assert (found["value"], found["n"], found["n_unscored"]) == (0.0, 1, 1)
        rows = json.loads(json.dumps(line.rows_to_dict(), allow_nan=False))["rows"]
        assert rows == {"ids": ["good", "broken"], "values": [0.0, None]}


@pytest.fixture
def broken_run(make_run, tmp_path):
    """A run whose adapter diverged: its weights are finite, but not what comes out."""
    from trl import ModelConfig

    from llm_forget.models.adapters.files import save_adapter
    from llm_forget.models.adapters.logit_fingerprint import effect_of
    from llm_forget.models.adapters.lora import attach_adapter
    from llm_forget.models.load import load_base

    run = make_run("run")
    args = ModelConfig(model_name_or_path=run.config["model_name_or_path"], use_peft=True, lora_r=4)
    model = attach_adapter(load_base(args), args)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.fill_(1e38)
    effect = effect_of(model)
    assert effect["max_abs"] is None
    save_adapter(model, run.adapter, effect=effect)
    return run


@pytest.mark.slow
def test_a_broken_model_is_unscored_in_every_line_and_no_verdict_calls_it_forgotten(broken_run):
    suite = yaml.safe_load(resources.resolve("eval", "basic").read_text(encoding="utf-8"))
    for probe in suite["probes"].values():
        if "limit" in probe:
            probe |= {"limit": 3}
        if "max_new_tokens" in probe:
            probe |= {"max_new_tokens": 8}
    suite["probes"]["drawn"] = {
        "probe": "generate", "split": "forget", "samples": 2, "temperature": 1.0, "max_new_tokens": 4,
    }  # fmt: skip
    suite["metrics"]["leak"] = {"metric": "leak_at_k", "generations": "drawn", "goal": "match_oracle"}
    path = broken_run.path.parent / "broken.yaml"
    path.write_text(yaml.safe_dump(suite, sort_keys=False))
    found = evaluate(broken_run.path, path, quiet=True)["suites"]["broken"]
    for name, line in found["metrics"].items():
        assert (name, line["value"], line["ci"], line["n"]) == (name, None, None, 0)
        assert line["n_unscored"] == line["oracle"]["n"] + line["oracle"]["n_unscored"]
    assert {verdict["answer"] for verdict in found["verdict"].values()} == {"inconclusive"}
    assert verify(broken_run.path)[0] == "inconclusive"
    rows = json.loads(broken_run.rows_file.read_text())["broken"]
    assert {v for line in rows.values() for v in line["unlearned"]["rows"]["values"]} == {None}


@pytest.mark.slow
def test_forget_quality_of_a_broken_model_is_unscored(broken_run):
    path = broken_run.path.parent / "suite.yaml"
    assert SUITE["metrics"]["forget_quality"]
    metrics = evaluate(broken_run.path, path, quiet=True)["suites"]["suite"]["metrics"]
    assert metrics["forget_quality"]["value"] is None
    assert not math.isnan(metrics["forget_quality"]["oracle"]["value"])
