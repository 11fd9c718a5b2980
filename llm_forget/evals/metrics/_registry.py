"""The table of metrics; apart from the package's ``__init__`` so that its files can be imported one by one."""

from typing import Any

from llm_forget.core.registry import Registry

METRICS = Registry("metric")
metric = METRICS.register

# Scores that join others in one of several possible ways.
SCORES = frozenset({"aggregate", "fluency", "memorization_score", "privacy_score", "utility_score"})
ONE_CHOICE = "one choice of several"


def is_one_choice(line: dict[str, Any]) -> bool:
    """Whether a line of results.json is such a score, which every table that shows it says."""
    return line.get("metric") in SCORES
