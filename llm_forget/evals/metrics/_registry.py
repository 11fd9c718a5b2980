"""Registry of metrics; a separate module, so that metric modules can be imported one by one."""

from typing import Any

from llm_forget.core.registry import Registry

METRICS = Registry("metric")
metric = METRICS.register

# Scores that combine other lines in one of several possible ways.
SCORES = frozenset({"aggregate", "fluency", "memorization_score", "privacy_score", "utility_score"})
ONE_CHOICE = "one choice of several"


def is_one_choice(line: dict[str, Any]) -> bool:
    """Whether a line of results.json is such a score; every table marks it."""
    return line.get("metric") in SCORES
