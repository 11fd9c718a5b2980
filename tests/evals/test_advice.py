"""The advice of an evaluation: which fault the violated bounds show, and what to change."""

from typing import Any

import pytest

from llm_forget.evals.advice import DAMAGED, LANGUAGE, OVER, UNDER, advice
from llm_forget.evals.verdict import apply_bound, parse_bound

LINES = {
    "forget_probability": 0.2, "extraction_strength": 0.3, "forget_quality": 0.5, "forget_repetition": 0.0,
    "forget_perplexity": 10.0, "retain_probability": 0.99, "mia_loss": 0.5, "privleak": 0.0,
}  # fmt: skip
BOUNDS = {
    "forgot": [
        {"line": "forget_probability", "at_most": 1.5, "of": "oracle"},
        {"line": "extraction_strength", "within": 0.05, "of": "oracle"},
        {"line": "forget_quality", "at_least": 0.05},
    ],
    "fluent": [
        {"line": "forget_repetition", "within": 0.05, "of": "oracle"},
        {"line": "forget_perplexity", "at_most": 1.5, "of": "oracle"},
    ],
    "private": [{"line": "mia_loss", "within": 0.1, "of": 0.5}, {"line": "privleak", "within": 5, "of": "oracle"}],
    "kept": [{"line": "retain_probability", "at_least": 0.9, "of": "before"}],
}


def suites(**changes: float) -> dict[str, Any]:
    """A suite whose lines equal the oracle's, but for ``changes``."""
    other = {name: {"value": value} for name, value in LINES.items()}
    lines = {
        name: {"value": changes.get(name, value), "n": 9, "ci": None, "oracle": other[name], "before": other[name]}
        for name, value in LINES.items()
    }
    for line, metric in {"forget_repetition": "repetition", "forget_perplexity": "generated_perplexity"}.items():
        lines[line]["metric"] = metric
    verdict = {
        question: {"findings": [apply_bound(parse_bound(b, question), lines[b["line"]]).to_dict() for b in bounds]}
        for question, bounds in BOUNDS.items()
    }
    return {"suite": {"metrics": lines, "verdict": verdict}}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({}, None),
        ({"forget_probability": 0.31}, UNDER),
        ({"extraction_strength": 0.36}, UNDER),
        ({"extraction_strength": 0.24}, OVER),
        ({"mia_loss": 0.61}, UNDER),
        ({"mia_loss": 0.39}, OVER),
        ({"privleak": -20.0}, UNDER),
        ({"privleak": 20.0}, OVER),
        ({"forget_quality": 0.01}, None),
        ({"forget_repetition": 0.1}, LANGUAGE),
        ({"forget_perplexity": 16.0}, LANGUAGE),
        ({"retain_probability": 0.8}, DAMAGED),
        ({"extraction_strength": 0.4, "forget_repetition": 0.5}, LANGUAGE),
        ({"extraction_strength": 0.4, "retain_probability": 0.5}, DAMAGED),
        ({"extraction_strength": 0.4, "mia_loss": 0.2}, OVER),
    ],
)
def test_the_worst_fault_is_named(changes: dict[str, float], sentence: str | None) -> None:
    assert advice(suites(**changes)) == sentence


def test_an_inconclusive_bound_is_no_fault() -> None:
    measured = suites(extraction_strength=0.9)
    for verdict in measured["suite"]["verdict"].values():
        for finding in verdict["findings"]:
            finding["holds"] = None
    assert advice(measured) is None
