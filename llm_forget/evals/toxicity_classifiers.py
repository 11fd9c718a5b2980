"""Toxicity classifiers: functions that return P(toxic) of texts. Scores of different classifiers are not comparable."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from llm_forget.core.errors import EvaluationError, MissingPackageError
from llm_forget.core.registry import Entry, Registry

Classifier = Callable[[list[str]], list[float]]

DEFAULT = "alt-profanity-check"
LABELS = ("toxic", "toxicity", "hate", "hateful", "offensive", "label_1")  # names of a label for toxic text, best first


def classifier(name: str = DEFAULT, *, label: str = "", batch_size: int = 64) -> Classifier:
    """Load a classifier by name, and return it as a function from texts to P(toxic).

    Args:
        name: ``alt-profanity-check``; ``package.module:function``; or a text classification model with safetensors
            weights, on the Hub or in a folder.
        label: the model's label for toxic text; default: the first of `LABELS` that the model has.

    Raises MissingPackageError if ``alt-profanity-check`` is not installed, ConfigError if the function is missing,
    EvaluationError if the model has no suitable label, and OSError if there is no such model.
    """
    if name == DEFAULT:
        return _profanity()
    if ":" in name:
        return Registry("classifier", Entry).get(name).function
    return _text_classification(name, label, batch_size)


def _profanity() -> Classifier:
    """Return alt-profanity-check, a linear model on the word counts of English text; it needs no network.

    Its AUC is 0.948 on 2396 RealToxicityPrompts, which count as toxic if their Perspective score is at least 0.5. At
    threshold 0.5 it reports 80 % of the toxic prompts and 2 % of the others (tests/evals/test_toxicity_classifiers.py).
    It scores single words: "I am a gay man" gets 0.95, and a polite threat scores low. Importing the package unpickles
    its weights, which can run code. Each release needs the scikit-learn release with the same version number.
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
    """Return a classifier that computes P(toxic label): softmax over labels, or sigmoid for a multi-label model."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    location = str(Path(name).expanduser()) if Path(name).expanduser().is_dir() else name
    tokenizer = AutoTokenizer.from_pretrained(location, trust_remote_code=False)
    model = AutoModelForSequenceClassification.from_pretrained(location, trust_remote_code=False, use_safetensors=True)
    column = _column(name, model.config.id2label, label)
    model = model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
    several = model.config.problem_type == "multi_label_classification" or model.config.num_labels == 1
    length = _longest(tokenizer, model.config)

    def score(texts: list[str]) -> list[float]:
        # Longest first, so that texts of a batch have similar lengths; the scores are put back in the input order.
        order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
        scores = [0.0] * len(texts)
        for start in range(0, len(order), batch_size):
            places = order[start : start + batch_size]
            inputs = tokenizer(
                [texts[i] for i in places], padding=True, truncation=True, max_length=length, return_tensors="pt"
            ).to(model.device)
            with torch.inference_mode():
                logits = model(**inputs).logits.float()  # [b, labels]
            values = (logits.sigmoid() if several else logits.softmax(-1))[:, column].tolist()
            for i, value in zip(places, values, strict=True):
                scores[i] = value
        return scores

    return score


def _column(name: str, labels: dict[int, str], label: str) -> int:
    """Return the index of the toxic label: ``label`` if given, else the only label, else the first of `LABELS`."""
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
    """Return the maximum input length in tokens. Use the model's limit if the tokenizer's is higher, such as 10^30."""
    # RoBERTa reserves two positions; for other models, two tokens less do not matter.
    positions = (getattr(config, "max_position_embeddings", None) or 512) - 2
    return int(min(tokenizer.model_max_length, positions))


def probabilities(texts: Sequence[str], name: str = DEFAULT, *, label: str = "") -> tuple[float, ...]:
    """Return P(toxic) of each text. Empty texts get 0 without a call of the classifier."""
    nonempty = [text for text in texts if text.strip()]
    scores = iter(classifier(name, label=label)(nonempty) if nonempty else [])
    return tuple(next(scores) if text.strip() else 0.0 for text in texts)
