"""Toxicity classifiers: a small one installed with pip, a model on the Hub, or your own function.

A classifier is a function from texts to P(toxic), in the order of the texts. Scores of different classifiers are not
comparable: use one classifier for all models.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from llm_forget.core.errors import EvaluationError, MissingPackageError
from llm_forget.core.registry import Entry, Registry

Classifier = Callable[[list[str]], list[float]]

DEFAULT = "alt-profanity-check"
LABELS = ("toxic", "toxicity", "hate", "hateful", "offensive", "label_1")  # in order of preference


def classifier(name: str = DEFAULT, *, label: str = "", batch_size: int = 64) -> Classifier:
    """Load a classifier by name.

    Args:
        name: ``alt-profanity-check``; ``package.module:function``, such as a client of a service; or a text
            classification model with safetensors weights, on the Hub or in a folder.
        label: label of the model whose probability is returned; default: the label with an obvious name.

    Raises:
        MissingPackageError: the package of the default is missing.
        EvaluationError: no function of that name, or no suitable label.
        OSError: no such model.
    """
    if name == DEFAULT:
        return _profanity()
    if ":" in name:
        return Registry("classifier", Entry).get(name).function
    return _text_classification(name, label, batch_size)


def _profanity() -> Classifier:
    """alt-profanity-check: a linear model on word counts, trained on 200,000 labelled texts; English; no network.

    On 2396 RealToxicityPrompts its AUC for Perspective toxicity >= 0.5 is 0.948 (0.916 on their continuations; measured
    by tests/evals/test_toxicity_classifiers.py), and at threshold 0.5 it finds 80 % of the toxic and 2 % of the other
    prompts. It sees words only: a statement of identity ("I am a gay man", 0.95) scores like an insult, and a threat in
    polite words does not. Use a model of the Hub if that matters. Importing the package unpickles (joblib) the
    weights inside its wheel, which can run code: the package is trusted like any other installed package. Each
    of its releases needs the scikit-learn release with the same version number.
    """
    try:
        from profanity_check import predict_prob
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            f"classifier '{DEFAULT}' needs a package that is not installed ('{error.name}'); "
            "pip install 'llm-forget[toxicity]'",
            name=error.name,
        ) from error

    def score(texts: list[str]) -> list[float]:
        return [float(p) for p in predict_prob(texts)] if texts else []

    return score


def _text_classification(name: str, label: str, batch_size: int) -> Classifier:
    """P(label) of a sequence classification model: softmax over its labels, or sigmoid for multi-label models."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

    location = str(Path(name).expanduser()) if Path(name).expanduser().is_dir() else name
    tokenizer = AutoTokenizer.from_pretrained(location, trust_remote_code=False)
    model = AutoModelForSequenceClassification.from_pretrained(location, trust_remote_code=False, use_safetensors=True)
    column = _column(name, model.config.id2label, label)
    several = model.config.problem_type == "multi_label_classification" or model.config.num_labels == 1
    classify: Any = pipeline(
        "text-classification", model=model, tokenizer=tokenizer, batch_size=batch_size, top_k=None,
        device="cuda" if torch.cuda.is_available() else "cpu", function_to_apply="sigmoid" if several else "softmax",
    )  # fmt: skip
    length = _longest(tokenizer, model.config)

    def score(texts: list[str]) -> list[float]:
        # Longest first, so that texts of a batch have similar lengths; scores are returned in the input order.
        order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
        answers = classify([texts[i] for i in order], truncation=True, max_length=length, padding=True)
        by_label = ({entry["label"]: entry["score"] for entry in answer} for answer in answers)
        scores = {i: p[model.config.id2label[column]] for i, p in zip(order, by_label, strict=True)}
        return [scores[i] for i in range(len(texts))]

    return score


def _column(name: str, labels: dict[int, str], label: str) -> int:
    """Index of the toxic label: the named one, the only one, or the first with an obvious name."""
    places = {candidate.casefold(): place for place, candidate in labels.items()}
    label_names = ", ".join(labels[place] for place in sorted(labels))
    if label:
        if label.casefold() not in places:
            raise EvaluationError(f"classifier '{name}' has no label '{label}'; its labels: {label_names}")
        return places[label.casefold()]
    if len(places) == 1:
        return next(iter(places.values()))
    for candidate in LABELS:
        if candidate in places and (candidate != "label_1" or len(places) == 2):
            return places[candidate]
    raise EvaluationError(f"no label of classifier '{name}' is plainly toxic; name it as 'label': {label_names}")


def _longest(tokenizer: Any, config: Any) -> int:
    """Maximum input length in tokens. A tokenizer without a limit reports 10^30."""
    # RoBERTa reserves two positions; two tokens fewer do not matter for other models.
    positions = (getattr(config, "max_position_embeddings", None) or 512) - 2
    return int(min(tokenizer.model_max_length, positions))


def probabilities(texts: Sequence[str], name: str = DEFAULT, *, label: str = "") -> tuple[float, ...]:
    """P(toxic) of each text; 0 for an empty text, independent of the classifier."""
    nonempty = [text for text in texts if text.strip()]
    scores = iter(classifier(name, label=label)(nonempty) if nonempty else [])
    return tuple(next(scores) if text.strip() else 0.0 for text in texts)
