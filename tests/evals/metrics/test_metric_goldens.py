"""Parity with locuslab/open-unlearning, from log-probs recomputed independently of our probes."""

import json
from functools import cache

import numpy as np
import pytest
import torch

from llm_forget.evals.metrics.exact_memorization import exact_memorization
from llm_forget.evals.metrics.extraction_strength import extraction_strength
from llm_forget.evals.metrics.forget_quality import forget_quality
from llm_forget.evals.metrics.model_utility import model_utility
from llm_forget.evals.metrics.probability import mean_probability, probability
from llm_forget.evals.metrics.probability_normalised import probability_normalised
from llm_forget.evals.metrics.rouge import rouge
from llm_forget.evals.metrics.truth_ratio import truth_ratio
from llm_forget.evals.records import GenerationRecord, TokenRecord
from llm_forget.evals.stats import ks_p_value, mean

MODELS = {"current": "tiny_model", "reference": "tiny_model_ref", "retain_model": "tiny_model_retain"}
SUMMARIES = {"closer_to_1_better": "forget", "true_better": "retain", "prob_mean": "known"}
PAIRS = {
    "forget": ("forget_para", "forget_pert"),
    "retain": ("retain_para", "retain_pert"),
    "ra": ("ra", "ra_pert"),
    "wf": ("wf", "wf_pert"),
}


@pytest.fixture(scope="module")
def goldens(shared):
    return json.loads((shared / "goldens/goldens.json").read_text())


@cache
def model(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


@torch.no_grad()
def token_record(folder, example, row, answer):
    ids, labels = torch.tensor([example["input_ids"]]), torch.tensor(example["labels"])
    logps = model(folder)(ids).logits[0].log_softmax(-1)[:-1]
    at = labels[1:] != -100
    gold = labels[1:][at]
    hits = logps[at].argmax(-1) == gold
    return TokenRecord(str(row), answer, logps[at].gather(-1, gold[:, None])[:, 0].numpy(), hits.numpy())


@pytest.fixture(scope="module")
def records(shared, goldens):
    @cache
    def measure(role, name):
        folder = shared / "goldens" / MODELS[role]
        rows = [row if isinstance(row, list) else [row] for row in goldens["metric_inputs"][name]]
        return [token_record(folder, e, i, k) for i, row in enumerate(rows) for k, e in enumerate(row)]

    return measure


def by_index(golden, key):
    return np.array([golden["value_by_index"][str(i)][key] for i in range(len(golden["value_by_index"]))], dtype=float)


def close(ours, theirs):
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("role", MODELS)
def test_probability(goldens, records, role):
    for name, golden in goldens["metrics"][role]["probability"].items():
        rows = probability(records(role, name))
        theirs = [np.mean(golden["value_by_index"][str(i)]["prob"]) for i in range(len(rows))]
        close(rows, theirs)
        close(rows.mean(), golden["agg_value"])


@pytest.mark.slow
@pytest.mark.parametrize("role", MODELS)
def test_the_loss_and_the_probability_of_every_answer_of_every_set(goldens, records, role):
    for name, golden in goldens["metrics"][role]["probability"].items():
        rows = golden["value_by_index"]
        ours = records(role, name)
        theirs = {key: [v for i in range(len(rows)) for v in np.atleast_1d(rows[str(i)][key])] for key in rows["0"]}
        assert set(theirs) == {"avg_loss", "prob"}
        assert len(ours) == len(theirs["prob"]) >= len(rows)  # one for each perturbed option
        close([-record.logps.mean() for record in ours], theirs["avg_loss"])
        close([mean_probability(record) for record in ours], theirs["prob"])


@pytest.mark.slow
@pytest.mark.parametrize("role", MODELS)
def test_normalised_probability(goldens, records, role):
    for name, golden in goldens["metrics"][role]["probability_w_options"].items():
        rows = probability_normalised(records(role, name), records(role, f"{name}_pert"))
        close(rows, by_index(golden, "prob"))
        close(rows.mean(), golden["agg_value"])


@pytest.mark.slow
@pytest.mark.parametrize("role", MODELS)
@pytest.mark.parametrize("aggregator", SUMMARIES)
def test_truth_ratio(goldens, records, role, aggregator):
    for name, golden in goldens["metrics"][role]["truth_ratio"][aggregator].items():
        correct, perturbed = (records(role, part) for part in PAIRS[name])
        # The peer's per-row score is R, except that prob_mean's is already 1 / (1 + R).
        per_row = truth_ratio(correct, perturbed, summary="known" if aggregator == "prob_mean" else "ratio")
        close(per_row, by_index(golden, "score"))
        close(truth_ratio(correct, perturbed, summary=SUMMARIES[aggregator]).mean(), golden["agg_value"])


@pytest.mark.parametrize("role", MODELS)
def test_memorization_under_the_peers_convention(goldens, records, role):
    golden = goldens["metrics"][role]
    exact = exact_memorization(records(role, "forget"), include_last=False)
    # The peer divides in float32.
    np.testing.assert_allclose(exact, by_index(golden["exact_memorization"], "score"), atol=5e-8)
    np.testing.assert_allclose(exact.mean(), golden["exact_memorization"]["agg_value"], atol=5e-8)
    strength = extraction_strength(records(role, "forget"), include_last=False, floor=True)
    np.testing.assert_allclose(strength, by_index(golden["extraction_strength"], "score"), atol=1e-9)
    np.testing.assert_allclose(strength.mean(), golden["extraction_strength"]["agg_value"], atol=1e-9)


def test_memorization_table(goldens):
    table = goldens["metrics"]["table_es_em"]
    rows = []
    for i, (labels, said) in enumerate(zip(table["labels"], table["argmax_prediction_of_token"], strict=True)):
        hits = [s == y for s, y in zip(said, labels, strict=True) if y != -100]
        rows.append(TokenRecord(str(i), 0, np.zeros(len(hits), np.float32), np.array(hits, dtype=bool)))
    exact = exact_memorization(rows, include_last=False)
    np.testing.assert_allclose(exact, by_index(table["exact_memorization"], "score"), atol=1e-9)
    assert mean(exact) == pytest.approx(table["exact_memorization"]["agg_value"], abs=1e-9)
    strength = extraction_strength(rows, include_last=False, floor=True)
    theirs = by_index(table["extraction_strength"], "score")
    np.testing.assert_allclose(strength[:4], theirs[:4], atol=1e-9)
    # Nothing to predict: the peer says 0, here it is unscored.
    assert (np.isnan(strength[4]), theirs[4]) == (True, 0.0)
    assert np.nan_to_num(strength).mean() == pytest.approx(table["extraction_strength"]["agg_value"], abs=1e-9)
    assert extraction_strength(rows).tolist()[:4] == pytest.approx([1.0, 0.8, 0.2, 0.0])


def test_forget_quality(goldens, records):
    ratio = {role: truth_ratio(records(role, "forget_para"), records(role, "forget_pert")) for role in MODELS}
    for key, value in goldens["metrics"]["forget_quality"]["values"].items():
        if value is not None:
            role = key.split("__")[0]
            close(forget_quality(ratio[role], ratio["retain_model"]), value)


def test_ks_on_synthetic_samples(goldens):
    golden = goldens["metrics"]["ks_synthetic"]
    assert ks_p_value(np.array(golden["forget"]), np.array(golden["retain"])) == pytest.approx(
        golden["pvalue"], abs=1e-9
    )


def test_model_utility(goldens, records):
    golden = goldens["metrics"]["model_utility"]
    members = list(golden["members"].values())
    assert model_utility(members) == pytest.approx(golden["value"], abs=1e-9)
    assert model_utility(golden["simple"]["values"]) == pytest.approx(golden["simple"]["value"], abs=1e-9)
    assert model_utility([*members, 0.0]) == golden["with_zero_member"]


def test_the_nine_components_of_model_utility_are_ours(goldens, records):
    ours = {}
    for name in ("retain", "ra", "wf"):
        correct, perturbed = (records("current", part) for part in PAIRS[name])
        known = name == "retain"
        ours |= {
            f"{name}_Q_A_Prob{'' if known else '_normalised'}": mean(
                probability(records("current", name)) if known else probability_normalised(correct, perturbed)
            ),
            f"{name}_Truth_Ratio": mean(truth_ratio(correct, perturbed, summary="retain")),
            f"{name}_Q_A_ROUGE": mean(rouge(said_by_the_peer(goldens["metrics"]["current"]["rouge"][name]))),
        }
    golden = goldens["metrics"]["model_utility"]
    assert set(ours) == set(golden["members"])
    for name, value in golden["members"].items():
        assert ours[name] == pytest.approx(value, rel=1e-4), name
    assert model_utility(list(ours.values())) == pytest.approx(golden["value"], rel=1e-4)


def said_by_the_peer(golden):
    rows = golden["value_by_index"]
    return [GenerationRecord(i, 0, row["generation"], 0, row["ground_truth"]) for i, row in rows.items()]


def test_rouge_of_the_peers_generations(goldens):
    current = goldens["metrics"]["current"]
    # MUSE's verbatim memorization is the F1 of the same measure, stemmed by open-unlearning and not by MUSE.
    verbatim = current["rouge_verbmem_f1"]
    assert rouge(said_by_the_peer(verbatim), measure="f1").mean() == pytest.approx(verbatim["agg_value"], abs=1e-9)
    for name, golden in {**current["rouge"], "verbmem": verbatim}.items():
        rows, said = golden["value_by_index"], said_by_the_peer(golden)
        for variant, measure in [("rouge1", "recall"), ("rougeL", "recall"), ("rougeL", "f1")]:
            ours = rouge(said, variant=variant, measure=measure)
            theirs = [row[f"{variant}_{measure}"] for row in rows.values()]
            np.testing.assert_allclose(ours, theirs, atol=1e-9, err_msg=name)
        if name != "verbmem":
            np.testing.assert_allclose(rouge(said).mean(), golden["agg_value"], atol=1e-9)


def test_rouge_of_strings(goldens):
    for case in goldens["metrics"]["rouge_strings"]:
        said = [GenerationRecord("0", 0, case["prediction"], 0, case["reference"])]
        for variant, measure in [("rouge1", "recall"), ("rougeL", "recall"), ("rougeL", "f1")]:
            theirs = case[f"{variant}_{measure}"]
            assert rouge(said, variant=variant, measure=measure)[0] == pytest.approx(theirs, abs=1e-9)
