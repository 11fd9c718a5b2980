"""Membership scores, AUCs and PrivLeak agree with locuslab/open-unlearning, whose scores are ours negated."""

import json
import zlib
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from llm_forget.evals.membership import ATTACKS, reference_scores, scores
from llm_forget.evals.metrics.membership_auc import membership_auc
from llm_forget.evals.metrics.membership_gradnorm import membership_gradnorm
from llm_forget.evals.metrics.membership_reference import membership_reference
from llm_forget.evals.metrics.priv_leak import leak, priv_leak
from llm_forget.evals.probes.gradients import probe_gradients
from llm_forget.evals.probes.probes import TokenRow, probe_logprobs
from llm_forget.evals.records import RecordWriter
from llm_forget.evals.stats import auc

MODELS = {"current": "tiny_model", "reference": "tiny_model_ref", "retain_model": "tiny_model_retain"}
# Name of the golden: attack and its parameters. open-unlearning leaves the end of the answer out of min-k.
CASES = {
    "loss": ("loss", {}),
    "zlib": ("zlib", {}),
    "min_k_0.2": ("min_k", {"k": 0.2, "include_last": False}),
    "min_k_0.4": ("min_k", {"k": 0.4, "include_last": False}),
    "min_k_pp_0.2": ("min_k_plus_plus", {"k": 0.2, "include_last": False}),
    "min_k_pp_0.4": ("min_k_plus_plus", {"k": 0.4, "include_last": False}),
}


@pytest.fixture(scope="module")
def goldens(shared):
    return json.loads((shared / "goldens/goldens.json").read_text())


@pytest.fixture(scope="module")
def load(shared):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    @cache
    def of(role):
        folder = shared / "goldens" / MODELS[role]
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), AutoTokenizer.from_pretrained(folder)

    return of


def token_rows(goldens, split):
    return [
        TokenRow(str(i), 0, 0, example["input_ids"], example["labels"])
        for i, example in enumerate(goldens["metric_inputs"][split])
    ]


@pytest.fixture(scope="module")
def records(load, goldens, tmp_path_factory):
    @cache
    def of(role, split):
        model, tokenizer = load(role)
        rows = token_rows(goldens, split)
        path = tmp_path_factory.mktemp("records") / "records.jsonl"
        writer = RecordWriter(path, "logprobs", "k", [row.key for row in rows])
        probe_logprobs(model, rows, writer)
        answers = [
            tokenizer.decode([token for token in row.labels if token != -100], skip_special_tokens=True) for row in rows
        ]
        sizes = [len(zlib.compress(answer.encode())) for answer in answers]
        return [replace(r, zlib_bytes=size) for r, size in zip(writer.finish(), sizes, strict=True)]

    return of


def theirs(golden, split):
    rows = golden[split]["value_by_index"]
    return -np.array([rows[str(i)]["score"] for i in range(len(rows))])


def agrees(estimate, golden):
    """The AUC, under both of its names, and the mean score of each side."""
    for name in ("auc", "agg_value"):
        assert estimate.value == pytest.approx(golden[name], abs=1e-9)
    for side, split in (("members", "forget"), ("nonmembers", "holdout")):
        close(-estimate.rows[side].mean(), golden[split]["agg_value"])


def close(ours, golden):
    np.testing.assert_allclose(ours, golden, rtol=1e-4, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("role", MODELS)
def test_scores_and_auc(goldens, records, role, name):
    golden = goldens["metrics"]["mia"][role][name]
    attack, given = CASES[name]
    for split in ("forget", "holdout"):
        close(scores(records(role, split), attack, **given), theirs(golden, split))
    estimate = membership_auc(records(role, "forget"), records(role, "holdout"), attack=attack, **given)
    agrees(estimate, golden)
    close(estimate.rows["members"], theirs(golden, "forget"))


@pytest.mark.slow
def test_the_reference_attack(goldens, records):
    golden = goldens["metrics"]["mia"]["current"]["reference"]
    sides = [[records(role, split) for split in ("forget", "holdout")] for role in ("current", "retain_model")]
    close(reference_scores(sides[0][0], sides[1][0]), theirs(golden, "forget"))
    close(reference_scores(sides[0][1], sides[1][1]), theirs(golden, "holdout"))
    agrees(membership_reference(*sides[0], *sides[1]), golden)


@pytest.mark.slow
@pytest.mark.parametrize("role", MODELS)
def test_gradient_norms(goldens, load, tmp_path, role):
    measured = {}
    for split in ("forget", "holdout"):
        # They take the gradient without the end of the answer.
        rows = [replace(row, labels=[*row.labels[:-1], -100]) for row in token_rows(goldens, split)]
        writer = RecordWriter(tmp_path / f"{split}.jsonl", "gradients", "k", [row.key for row in rows])
        probe_gradients(load(role)[0], rows, writer)
        measured[split] = writer.finish()
    for p, name in [(1, "1"), (2, "2"), (float("inf"), "inf")]:
        golden = goldens["metrics"]["mia"][role][f"gradnorm_p{name}"]
        for split, found in measured.items():
            close([-record.norms[name] for record in found], theirs(golden, split))
        agrees(membership_gradnorm(measured["forget"], measured["holdout"], p=p), golden)


def test_every_attack_has_a_golden(goldens):
    assert {attack for attack, _ in CASES.values()} | {"reference", "gradnorm"} == set(ATTACKS.names())


def test_priv_leak(goldens, records):
    golden = goldens["metrics"]["privleak"]
    sides = [records(role, split) for role in ("current", "retain_model") for split in ("forget", "holdout")]
    estimate = priv_leak(*sides, attack="min_k", k=0.4, include_last=False)
    assert estimate.value == pytest.approx(golden["with_retain_logs"], abs=1e-6)
    sides = [membership_auc(*sides[i : i + 2], attack="min_k", k=0.4, include_last=False).value for i in (0, 2)]
    own, oracle = (golden["inputs"][name] for name in ("current_auc", "retain_auc"))
    assert sides == pytest.approx([own, oracle], abs=1e-9)
    # Without an oracle they compare with chance; and `rel_diff` is the same formula of 1 - AUC.
    assert float(leak(own, 0.5)) == pytest.approx(golden["default_ref_0.5"], abs=1e-6)
    assert float(leak(1 - own, 1 - oracle)) == pytest.approx(golden["rel_diff_with_retain_logs"], abs=1e-6)
    for case in golden["synthetic"]:
        assert float(leak(case["auc"], case["ref"])) == pytest.approx(case["value"], abs=1e-6)


def test_auc_agrees_with_scikit_learn(goldens):
    roc_auc_score = pytest.importorskip("sklearn.metrics").roc_auc_score
    golden = goldens["metrics"]["mia"]["current"]["loss"]
    one, two = theirs(golden, "forget"), theirs(golden, "holdout")
    labels = [1] * len(one) + [0] * len(two)
    assert auc(one, two) == pytest.approx(roc_auc_score(labels, [*one, *two]), abs=1e-12)
