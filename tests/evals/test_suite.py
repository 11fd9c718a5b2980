"""Suites are read strictly: whatever cannot be meant is refused with a suggestion."""

import copy

import pytest

from llm_forget.core import resources
from llm_forget.evals.suite import load_suite, parse_suite

GOOD = {
    "data": {"extra": "extra.jsonl"},
    "probes": {
        "forget": {"probe": "logprobs", "split": "forget"},
        "lies": {"probe": "logprobs", "split": "forget", "field": "perturbed_answer", "limit": 10},
        "text": {"probe": "generate", "split": "extra", "max_new_tokens": 20},
    },
    "metrics": {
        "p": {"metric": "probability", "records": "forget", "goal": "lower"},
        "r": {"metric": "truth_ratio", "correct": "forget", "perturbed": "lies", "goal": "match_oracle"},
        "fq": {"metric": "forget_quality", "truth_ratio": "r", "goal": "higher"},
        "u": {"metric": "model_utility", "components": ["p", "r"], "goal": "keep"},
    },
    "verdict": {"forgot": [{"line": "p", "at_most": 1.5, "of": "oracle"}, {"line": "fq", "at_least": 0.05}]},
}


def changed(*path, value=None, remove=False):
    content = copy.deepcopy(GOOD)
    place = content
    for key in path[:-1]:
        place = place[key]
    if remove:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return content


def test_a_valid_suite_is_parsed():
    suite = parse_suite(GOOD, name="good")
    assert suite.splits() == ["forget", "extra"]
    assert [line.name for line in suite.lines] == ["p", "r", "fq", "u"]
    assert suite.lines[1].arguments == {"summary": "ratio"}
    assert suite.lines[2].other_inputs == {"oracle_truth_ratio": ("oracle", "truth_ratio")}
    assert suite.verdict["forgot"][0].amount == 1.5


def test_an_optional_probe_of_a_missing_split_is_left_out_with_its_lines_and_bounds():
    content = changed("probes", "lies", "optional", value=True)
    content["probes"]["lies"]["split"] = "neighbours"
    suite = parse_suite(content, name="s")
    assert suite.without(["holdout"]) == suite
    rest = suite.without(["neighbours", "extra"])  # the probe of `extra` is not optional
    assert list(rest.probes) == ["forget", "text"]
    assert [line.name for line in rest.lines] == ["p"]  # r reads the probe, fq and u read r
    assert [bound.line for bound in rest.verdict["forgot"]] == ["p"]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (changed("probes", "lies", "optional", value="yes"), "'optional' must be true or false"),
        (changed("metric", value={}), "no key 'metric'; did you mean 'metrics'"),
        (changed("probes", "forget", "splitt", value="x"), "no key 'splitt'; did you mean 'split'"),
        (changed("probes", "forget", "probe", value="logits"), "one of logprobs"),
        (changed("probes", "forget", "split", remove=True), "must name a split"),
        (changed("probes", "lies", "limit", value=0), "at least 1"),
        (changed("probes", "lies", "limit", value=True), "at least 1"),
        (changed("probes", "forget", "top", value=0), "'top' must be a whole number of at least 1"),
        (changed("probes", "text", "top", value=9), "no key 'top'"),
        (
            changed("metrics", "kl", value={"metric": "kl_to_oracle", "records": "forget", "goal": "match_oracle"}),
            "add e.g. 'top: 256' to probe 'forget'",
        ),
        (changed("probes", "text", "samples", value=3), "add e.g. 'temperature: 1.0'"),
        (changed("probes", "text", "top_p", value=1.5), "above 0 and at most 1"),
        (changed("probes", "text", "prefix", value=0), "above 0"),
        (changed("probes", "z", value={"probe": "judge", "generations": "forget"}), "generating probe above"),
        (changed("probes", "z", value={"probe": "judge", "generations": "text", "limit": 3}), "no key 'limit'"),
        (changed("probes", "forget", "max_new_tokens", value=5), "no key 'max_new_tokens'"),
        (changed("metrics", "p", "metric", value="probabilty"), "did you mean 'probability'"),
        (changed("metrics", "p", "records", value="forgot"), "neither a probe nor a line above; did you mean 'forget'"),
        (changed("metrics", "p", "records", remove=True), "must give 'records'"),
        (changed("metrics", "p", "records", value=3), "names '3'"),
        (changed("metrics", "p", "goal", value="down"), "must state a goal"),
        (changed("metrics", "r", "summry", value="forget"), "no key 'summry'; did you mean 'summary'"),
        (changed("metrics", "fq", "oracle_truth_ratio", value="r"), "no key 'oracle_truth_ratio'"),
        (changed("metrics", "fq", "truth_ratio", value="u"), "names 'u'"),
        (changed("metrics", "p", "records", value="text"), "'records' must be a probe of kind logprobs or judge"),
        (changed("metrics", "r", "correct", value="p"), "'correct' must be a probe of kind logprobs or judge"),
        (changed("metrics", "fq", "truth_ratio", value="forget"), "must be a line above"),
        (changed("metrics", "u", "components", value=["text"]), "must be a line above"),
        (changed("metrics", "u", "components", value="p"), "must be a list of lines"),
        (changed("metrics", "p", "records", value=["forget"]), "must be a single name"),
        (changed("probes", "forget", "seed", value=[1]), "'seed' must be a whole number"),
        (changed("probes", "lies", "field", value=5), "must be the name of a column"),
        (
            changed("metrics", "z", value={"metric": "forget_quality", "truth_ratio": "u", "goal": "keep"}),
            "value per row",
        ),
        (changed("metrics", "z", value={"metric": "rouge", "generations": "lies", "goal": "keep"}), "of kind generate"),
        (changed("metrics", "forget", value=GOOD["metrics"]["p"]), "names a probe and a metric line"),
        (changed("metrics", "r", "summary", value=3), "must be str"),
        (changed("verdict", "forgot", value=[{"line": "q", "at_most": 1}]), "names no metric line"),
        (changed("verdict", "forgot", value=[{"line": "p"}]), "exactly one of"),
        (
            changed("verdict", "forgot", value=[{"line": "p", "at_most": 1, "of": "target"}]),
            "oracle, before or a number",
        ),
        (changed("verdict", "forgot", value=[{"line": "p", "within": 1}]), "is a distance and needs a reference"),
        (changed("verdict", "forgot", value=[{"line": "p", "at_most": "1"}]), "must be a number"),
        (changed("verdict", "forgot", value=3), "list of bounds"),
        (changed("probes", value=["forget"]), "mapping"),
        (None, "mapping"),
    ],
)
def test_invalid_suites_are_refused(content, sentence):
    with pytest.raises(ValueError, match=sentence):
        parse_suite(content, name="bad")


def test_a_line_may_not_use_a_line_below():
    content = changed("metrics", value=dict(reversed(GOOD["metrics"].items())))
    with pytest.raises(ValueError, match="neither a probe nor a line above"):
        parse_suite(content, name="bad")


@pytest.mark.parametrize("name", resources.names("eval"))
def test_every_shipped_suite_is_valid(name):
    suite = load_suite(name)
    assert suite.lines or suite.tasks
    assert suite.verdict


def test_tofu_has_the_nine_components_of_model_utility():
    line = next(line for line in load_suite("tofu").lines if line.name == "model_utility")
    kinds = {(part.split("_", 1)[0], part.split("_", 1)[1]) for part in line.inputs["components"]}
    assert kinds == {(s, m) for s in ("retain", "authors", "facts") for m in ("probability", "rouge", "truth_ratio")}


def test_an_unknown_suite_is_refused_with_a_suggestion():
    with pytest.raises(FileNotFoundError, match="did you mean 'demo'"):
        load_suite("demoo")


def test_broken_yaml_is_named(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("probes: {")
    with pytest.raises(ValueError, match=r"mine\.yaml' is not valid YAML"):
        load_suite(path)
