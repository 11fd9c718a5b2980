"""Lines are computed top to bottom, the oracle stands in for itself, and what cannot be known is inconclusive."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from llm_forget.evals.compute_metrics import _mean, compute_lines
from llm_forget.evals.records import TokenRecord
from llm_forget.evals.stats import Estimate
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
    lines = compute_lines(SUITE, records(0.1), role="oracle")
    oracle = {"oracle": (records(0.1), lines)}
    assert lines["fq"].value == 1.0
    assert compute_lines(SUITE, records(0.1), oracle)["fq"].value == 1.0
    assert compute_lines(SUITE, records(0.9), oracle)["fq"].value < 0.01


def with_subjects(answers, rows_each=10, prefix="s"):
    """The records, each ten with one subject."""
    return [replace(record, subject=f"{prefix}{i // rows_each}") for i, record in enumerate(answers)]


def test_intervals_resample_the_subjects_of_rows():
    rows = {name: [replace(r, logps=np.float32([-0.1 * (i // 10)])) for i, r in enumerate(answers)]
            for name, answers in records(0.1).items()}  # fmt: skip
    owned = {name: with_subjects(answers) for name, answers in rows.items()}
    by_row, by_subject = (compute_lines(SUITE, r, role="oracle")["p"].summary for r in (rows, owned))
    assert by_subject.value == by_row.value
    assert by_subject.ci == (pytest.approx(math.exp(-0.2)), 1.0)
    assert by_row.ci[1] - by_row.ci[0] < (by_subject.ci[1] - by_subject.ci[0]) / 2


SPLITS = parse_suite(
    {
        "probes": {name: {"probe": "logprobs", "split": name} for name in ("forget", "retain")},
        "metrics": {
            "f": {"metric": "probability", "records": "forget", "goal": "match_oracle"},
            "r": {"metric": "probability", "records": "retain", "goal": "keep"},
        },
    },
    name="test",
)


def test_rows_of_two_splits_with_equal_ids_have_the_subjects_of_their_own_split():
    rng = np.random.default_rng(0)
    rows = [replace(r, logps=np.float32([-rng.random()])) for r in records(0.1)["forget"]]
    alone = compute_lines(SPLITS, {"forget": rows, "retain": rows})
    lines = compute_lines(SPLITS, {"forget": with_subjects(rows), "retain": with_subjects(rows, rows_each=1)})
    assert lines["r"].summary.ci == pytest.approx(alone["r"].summary.ci, abs=0.05)
    assert lines["f"].summary.ci != alone["f"].summary.ci
    assert lines["f"].rows["rows"].subjects[:11] == ["s0"] * 10 + ["s1"]
    assert lines["r"].rows["rows"].subjects[:2] == ["s0", "s1"]


def test_a_line_of_lines_has_the_subjects_of_their_rows():
    rows = {name: with_subjects(answers) for name, answers in records(0.1).items()}
    line = compute_lines(SUITE, rows, role="oracle")["r"]
    assert line.rows["rows"].subjects == [f"s{i // 10}" for i in range(30)]


def test_a_single_number_rests_on_the_rows_of_its_inputs():
    line = compute_lines(SUITE, records(0.1, n=7), role="oracle")["fq"]
    assert (line.summary.n, line.summary.ci) == (7, None)


def test_an_infinite_ratio_is_written_as_unknown_and_not_as_broken_json():
    impossible = records(0.1)
    impossible["forget"][0] = TokenRecord("r0", 0, np.array([-np.inf], np.float32), np.array([False]))
    line = compute_lines(SUITE, impossible, role="oracle")["r"].to_dict()
    assert json.loads(json.dumps(line, allow_nan=False)) == {"value": None, "ci": None, "n": 30, "n_unscored": 0}


def test_without_an_oracle_its_lines_are_unscored_and_so_are_those_made_of_them():
    lines = compute_lines(SUITE, records(0.1))
    assert lines["p"].summary.value == pytest.approx(0.1)
    for name in ("fq", "u"):
        assert math.isnan(lines[name].summary.value)
        assert lines[name].summary.n == 0
        assert json.loads(json.dumps(lines[name].to_dict(), allow_nan=False))["value"] is None


def test_a_task_without_a_number_is_unscored():
    suite = parse_suite({"lm_eval": {"piqa": {"task": "forget_piqa", "metric": "acc", "goal": "keep"}}}, name="s")
    line = compute_lines(suite, {"piqa": {"value": None, "ci": None, "n": 7}})["piqa"].to_dict()
    assert line == {"value": None, "ci": None, "n": 0, "n_unscored": 7}


def test_rows_keep_their_ids():
    lines = compute_lines(SUITE, records(0.1, n=3), role="oracle")
    assert lines["r"].rows_to_dict()["rows"]["ids"] == ["r0", "r1", "r2"]
    assert lines["p"].rows_to_dict()["rows"]["values"] == pytest.approx([0.1] * 3)
    assert lines["fq"].rows == {}


def test_a_metric_may_bring_its_own_interval_and_rows():
    suite = parse_suite(
        {
            "probes": {name: {"probe": "logprobs", "split": name} for name in ("forget", "holdout")},
            "metrics": {
                "mia": {
                    "metric": "membership_auc",
                    "members": "forget",
                    "nonmembers": "holdout",
                    "goal": "match_oracle",
                },
                "u": {"metric": "model_utility", "components": ["mia"], "goal": "keep"},
            },
        },
        name="test",
    )
    sides = {"forget": records(0.9)["forget"], "holdout": records(0.1)["forget"]}
    lines = compute_lines(suite, sides, role="oracle")
    assert lines["mia"].summary.value == 1.0 == lines["u"].summary.value
    assert lines["mia"].summary.ci[0] < 1.0
    assert lines["mia"].rows_to_dict()["nonmembers"]["ids"][:2] == ["r0", "r1"]


def with_lines(level, seed):
    return records(level, seed=seed), compute_lines(SUITE, records(level, seed=seed))


def test_of_several_oracles_a_line_is_the_mean_over_comparisons_with_each():
    first, second = with_lines(0.1, 1), with_lines(0.3, 2)
    alone = [compute_lines(SUITE, records(0.2), {"oracle": oracle})["fq"].value for oracle in (first, second)]
    assert alone[0] != alone[1]
    both = compute_lines(SUITE, records(0.2), {"oracle": first, "oracle_1": second})
    assert both["fq"].value == pytest.approx(sum(alone) / 2)
    assert both["p"].summary.value == pytest.approx(0.2)


def test_of_several_oracles_each_is_compared_with_the_others():
    first, second = with_lines(0.1, 1), with_lines(0.3, 2)
    oracles = {"oracle": first, "oracle_1": second}
    value = compute_lines(SUITE, first[0], oracles, role="oracle")["fq"].value
    assert value == compute_lines(SUITE, second[0], oracles, role="oracle_1")["fq"].value  # the test is symmetric
    assert value == compute_lines(SUITE, first[0], {"oracle": second})["fq"].value < 1


def test_an_oracle_without_the_input_leaves_the_line_unscored():
    oracles = {"oracle": with_lines(0.1, 1), "oracle_1": (records(0.3), {})}
    assert math.isnan(compute_lines(SUITE, records(0.2), oracles)["fq"].value)


def test_rows_and_intervals_are_averaged_over_the_oracles():
    rows = _mean([np.array([0.0, 1.0, np.nan]), np.array([1.0, 0.5, 0.0])])
    assert rows[:2].tolist() == [0.5, 0.75]
    assert math.isnan(rows[2])
    parts = [
        Estimate(0.5, (0.4, 0.6), 9, 1, {"m": np.array([1.0])}),
        Estimate(0.7, (0.6, 1.0), 8, 2, {"m": np.array([2.0])}),
    ]
    estimate = _mean(parts)
    assert (estimate.value, estimate.n, estimate.n_unscored) == (pytest.approx(0.6), 8, 2)
    assert estimate.ci == pytest.approx((0.5, 0.8))
    assert estimate.rows["m"].tolist() == [1.5]
    assert _mean([parts[0], Estimate(0.7, None, 8, 0, parts[1].rows)]).ci is None
