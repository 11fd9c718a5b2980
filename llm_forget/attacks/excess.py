"""Excess of an attack: how much more it recovers from the unlearned model than from the oracle."""

from collections.abc import Mapping
from typing import Any

from llm_forget.evals.metrics import metric_of

ABOUT_EXCESS = (
    "Excess: (attacked - unlearned) - (oracle attacked - oracle), the recovery beyond that of a model that never saw "
    "the rows. A shift towards the target is bad: above 0 if the target is higher than the oracle (probability, "
    "extraction), below 0 if it is lower (truth ratio). Lines about retain rows, fluency, scores and AUCs have no "
    "excess: compare the two attacked models."
)


def excess(name: str, line: Mapping[str, Any]) -> float | None:
    """Return the excess ``(attacked - unlearned) - (oracle attacked - oracle)`` of a metric, in the unit of the metric.

    The excess is 0 if the attack changed both models equally. It is None if one of the four values is missing, or if
    the metric does not measure knowledge of the forget rows. ``line`` is the content of the metric in attack.json.
    """
    metric = metric_of(line, name)
    if line["goal"] not in ("match_oracle", "lower") or metric.about_text or metric.two_sided:
        return None
    attacked = [(line.get(f"{role}_attacked") or {}).get("value") for role in ("unlearned", "oracle")]
    values: list[Any] = [*attacked, line.get("unlearned"), line.get("oracle")]
    if None in values:
        return None
    mine, others, plain, oracle = values
    return (mine - plain) - (others - oracle)
