"""Toxicity: what the classifiers say, and how the samples of a prompt are summed up."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from llm_forget.evals.metrics.toxicity import toxicity
from llm_forget.evals.records import GenerationRecord
from llm_forget.evals.toxicity_classifiers import classifier, probabilities

THIS = "test_toxicity_scores:by_digits"


@pytest.fixture
def by_digits(tmp_path, monkeypatch):
    """A classifier of somebody else: a text is its own probability."""
    (tmp_path / "test_toxicity_scores.py").write_text("def by_digits(texts):\n    return [float(t) for t in texts]\n")
    monkeypatch.syspath_prepend(tmp_path)
    return THIS


def said(*texts, row="a"):
    return [GenerationRecord(row, i, text, 1) for i, text in enumerate(texts)]


def test_samples_are_summed_up_as_maximum_probability_and_mean(by_digits):
    texts = [*said("0.1", "0.5", "0.3"), *said("0.2", "0.4", "0.0", row="b")]
    expected = {"expected_maximum": [0.5, 0.4], "probability": [1, 0], "mean": [0.3, 0.2]}
    for summary, values in expected.items():
        np.testing.assert_allclose(toxicity(texts, classifier=by_digits, summary=summary), values)
    assert toxicity(texts, classifier=by_digits, summary="probability", threshold=0.4).tolist() == [1, 1]


def test_an_empty_continuation_is_not_toxic(by_digits):
    assert toxicity(said("", " \n"), classifier=by_digits).tolist() == [0]


def test_an_unknown_summary_is_refused_with_a_suggestion(by_digits):
    with pytest.raises(ValueError, match="did you mean 'mean'"):
        toxicity(said("0.1"), classifier=by_digits, summary="means")


@pytest.mark.slow
def test_the_default_classifier_tells_toxic_prompts_from_others(shared):
    pytest.importorskip("profanity_check", reason="needs the extra 'toxicity'")
    from sklearn.metrics import roc_auc_score

    folder = shared / "data/realtoxicityprompts"
    lines = [line for name in ("toxic", "nontoxic") for line in (folder / f"{name}.jsonl").read_text().splitlines()]
    for part, expected in (("prompt", 0.948), ("continuation", 0.916)):
        rows = [row for line in lines if (row := json.loads(line)[part])["toxicity"] is not None]
        truth = [row["toxicity"] >= 0.5 for row in rows]
        assert roc_auc_score(truth, probabilities([row["text"] for row in rows])) == pytest.approx(expected, abs=0.01)


@pytest.mark.slow
def test_the_default_classifier_takes_identity_for_insult():
    pytest.importorskip("profanity_check", reason="needs the extra 'toxicity'")
    gay, tall = classifier()(["I am a gay man.", "I am a tall man."])
    assert gay > 0.9  # a known fault, stated where the classifier is described
    assert tall < 0.1
    assert classifier()([]) == []


def test_without_its_package_the_default_says_what_to_install():
    code = """
import sys
sys.modules["profanity_check"] = None
from llm_forget.evals.toxicity_classifiers import classifier
try:
    classifier()
except ModuleNotFoundError as error:
    sys.exit(0 if "pip install 'llm-forget[toxicity]'" in str(error) else 1)
sys.exit(2)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.fixture
def folder(tmp_path, tiny_tokenizer):
    """``folder(labels, **config)``: a random text classification model of three labels, in a folder."""
    from transformers import BertConfig, BertForSequenceClassification

    def make(labels=("neutral", "toxic"), **changes):
        names = dict(enumerate(labels))
        sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        config = BertConfig(
            vocab_size=len(tiny_tokenizer), **sizes, max_position_embeddings=64, pad_token_id=2,
            id2label=names, label2id={label: place for place, label in names.items()}, **changes,
        )  # fmt: skip
        torch.manual_seed(0)
        model = BertForSequenceClassification(config)
        torch.nn.init.normal_(model.classifier.weight)
        model.save_pretrained(tmp_path / "judge")
        tiny_tokenizer.save_pretrained(tmp_path / "judge")
        return str(tmp_path / "judge"), model.eval()

    return make


TEXTS = ["short", "a text that is much longer than the others", "x", "middling text", "y" * 500]


@pytest.mark.slow
def test_a_model_scores_every_text_in_the_order_given_whatever_the_batch(folder, tiny_tokenizer):
    name, model = folder()
    with torch.inference_mode():
        cut = [torch.tensor([tiny_tokenizer(text)["input_ids"][:62]]) for text in TEXTS]
        alone = [float(model(ids).logits.softmax(-1)[0, 1]) for ids in cut]
    assert len({round(p, 6) for p in alone}) == len(TEXTS)
    for size in (1, 2, 64):
        np.testing.assert_allclose(classifier(name, batch_size=size)(TEXTS), alone, atol=1e-5)
    np.testing.assert_allclose(toxicity(said(*TEXTS), classifier=name), [max(alone)], atol=1e-5)


@pytest.mark.slow
def test_labels_that_may_hold_at_once_are_probabilities_of_their_own(folder, tiny_tokenizer):
    name, model = folder(("obscene", "toxic", "threat"), problem_type="multi_label_classification")
    logits = model(torch.tensor([tiny_tokenizer("short")["input_ids"]])).logits[0]
    assert classifier(name)(["short"]) == pytest.approx([logits[1].sigmoid().item()], abs=1e-5)
    assert classifier(name, label="Threat")(["short"]) == pytest.approx([logits[2].sigmoid().item()], abs=1e-5)


@pytest.mark.slow
def test_a_label_that_is_not_plain_must_be_named(folder):
    name, _ = folder(("LABEL_0", "LABEL_1", "LABEL_2"))
    with pytest.raises(ValueError, match="plainly toxic; name it as 'label': LABEL_0, LABEL_1, LABEL_2"):
        classifier(name)
    with pytest.raises(ValueError, match="no label 'bad'; its labels: LABEL_0"):
        classifier(name, label="bad")
    assert len(classifier(name, label="LABEL_2")(["x"])) == 1


def test_the_second_of_two_nameless_labels_is_the_toxic_one(folder, tiny_tokenizer):
    name, model = folder(("LABEL_0", "LABEL_1"))
    expected = model(torch.tensor([tiny_tokenizer("x")["input_ids"]])).logits.softmax(-1)[0, 1]
    assert classifier(name)(["x"]) == pytest.approx([expected.item()], abs=1e-5)


def test_weights_that_are_a_pickle_are_refused(folder, tmp_path):
    name, model = folder()
    (tmp_path / "judge/model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "judge/pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        classifier(name)
