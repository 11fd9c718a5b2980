"""What an attack brought back beyond what it brings back in a model that never saw the rows: arithmetic on numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# An AUC gives rows away on either side of 0.5, and whether answers are language is not what was forgotten.
METRICS_WITHOUT_EXCESS = ("repetition", "silence", "generated_perplexity", "priv_leak")
ABOUT_EXCESS = (
    "Excess: (attacked - unlearned) - (oracle attacked - oracle), what the attack brought back beyond what it brings "
    "out of a model that never saw the rows. Towards the model before is bad: above 0 where that is higher than the "
    "oracle (probability, extraction), below 0 where it is lower (truth ratio). Lines about retain rows, fluency, "
    "scores and AUCs have none: compare the two attacked models."
)


def excess(name: str, line: Mapping[str, Any]) -> float | None:
    """(attacked - unlearned) - (oracle attacked - oracle), in the unit of the line; 0 where both moved alike.

    Args:
        name: of the line.
        line: of attack.json: ``goal``, ``metric``, ``unlearned``, ``oracle`` and, with ``value``, both attacked.

    Returns:
        None where one of the four is unknown, and for lines that do not say how much of the forgotten is known.
    """
    metric = line.get("metric", name)
    if (
        line["goal"] not in ("match_oracle", "lower")
        or metric in METRICS_WITHOUT_EXCESS
        or metric.startswith("membership_")
    ):
        return None
    attacked = [(line.get(f"{role}_attacked") or {}).get("value") for role in ("unlearned", "oracle")]
    values = [*attacked, line.get("unlearned"), line.get("oracle")]
    if None in values:
        return None
    mine, others, plain, oracle = values
    return (mine - plain) - (others - oracle)
