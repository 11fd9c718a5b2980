"""Lines are computed top to bottom, the oracle stands in for itself, and what cannot be known is inconclusive."""

import json
import math

import numpy as np
import pytest

from llm_forget.evals.lines import answer, compute_lines, judge
from llm_forget.evals.records import TokenRecord
from llm_forget.evals.suite import parse_suite

SUITE = parse_suite(
    {
        "probes": {
            "forget": {"probe": "logprobs", "split": "forget"},
            "lies": {"probe": "logprobs", "split": "forget", "field": "perturbed_answer"},
        },
        "metrics": {
            "p": {"metric": "probability", "records": "forget", "goal": "match_oracle"},
            "r": {"metric": "truth_ratio", "correct": "forget", "perturbed": "lies", "goal": "match_oracle"},
            "fq": {"metric": "forget_quality", "truth_ratio": "r", "goal": "higher"},
            "u": {"metric": "model_utility", "components": ["p", "fq"], "goal": "keep"},
        },
        "verdict": {
            "forgot": [
                {"line": "p", "at_most": 1.5, "of": "oracle"},
                {"line": "p", "within": 0.05, "of": "oracle"},
                {"line": "fq", "at_least": 0.05},
            ],
            "kept": [{"line": "p", "at_least": 0.9, "of": "before"}],
        },
    },
    name="test",
)


def records(level, n=30, seed=0):
    """Answers with mean probability ``level`` on every row, lies spread around it."""
    rng = np.random.default_rng(seed)

    def make(i, value):
        return TokenRecord(f"r{i}", 0, np.array([value], np.float32), np.array([True]))

    truth = [make(i, math.log(level)) for i in range(n)]
    return {"forget": truth, "lies": [make(i, -3 + rng.normal()) for i in range(n)]}


def test_the_oracle_is_its_own_oracle():
    oracle = compute_lines(SUITE, records(0.1), is_oracle=True)
    assert oracle["fq"].value == 1.0
    assert compute_lines(SUITE, records(0.1), oracle)["fq"].value == 1.0
    assert compute_lines(SUITE, records(0.9), oracle)["fq"].value < 0.01


def test_a_single_number_rests_on_the_rows_of_its_inputs():
    line = compute_lines(SUITE, records(0.1, n=7), is_oracle=True)["fq"]
    assert (line.summary.n, line.summary.ci) == (7, None)


def test_an_infinite_ratio_is_written_as_unknown_and_not_as_broken_json():
    impossible = records(0.1)
    impossible["forget"][0] = TokenRecord("r0", 0, np.array([-np.inf], np.float32), np.array([False]))
    line = compute_lines(SUITE, impossible, is_oracle=True)["r"].to_dict()
    assert json.loads(json.dumps(line, allow_nan=False)) == {"value": None, "ci": None, "n": 30, "n_unscored": 0}


def test_without_an_oracle_its_lines_are_unscored_and_so_are_those_made_of_them():
    lines = compute_lines(SUITE, records(0.1))
    assert lines["p"].summary.value == pytest.approx(0.1)
    for name in ("fq", "u"):
        assert math.isnan(lines[name].summary.value)
        assert lines[name].summary.n == 0
        assert json.loads(json.dumps(lines[name].to_dict(), allow_nan=False))["value"] is None


def findings(unlearned, before=0.9, oracle=0.1):
    own = compute_lines(SUITE, records(oracle), is_oracle=True) if oracle else None
    computed = [compute_lines(SUITE, records(level), own) if level else None for level in (unlearned, before)]
    return judge(SUITE, computed[0], computed[1], own)


def test_a_model_like_the_oracle_has_forgotten():
    verdict = findings(0.12)
    assert answer(verdict["forgot"]) == "yes"
    assert verdict["forgot"][0].sentence() == "p 0.120 (oracle 0.100; at most 1.5 times)"


def test_one_broken_bound_is_a_no():
    verdict = findings(0.2)
    assert [f.holds for f in verdict["forgot"][:2]] == [False, False]
    assert answer(verdict["forgot"]) == "no"
    assert answer(verdict["kept"]) == "no"


def test_falling_far_below_the_oracle_is_not_within():
    assert findings(0.02)["forgot"][1].holds is False


def test_without_the_other_model_a_bound_is_inconclusive():
    assert answer(findings(0.12, oracle=None)["forgot"]) == "inconclusive"
    assert answer(findings(0.12, before=None)["kept"]) == "inconclusive"


def test_nothing_to_judge_is_inconclusive():
    assert answer([]) == "inconclusive"
