"""Registry of metrics, in a module of its own to avoid circular imports."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from llm_forget.core.registry import Entry, Registry

ONE_CHOICE = "one choice of several"


@dataclass(frozen=True)
class Metric(Entry):
    """A registered metric, with properties that decide how tables, charts and comparisons show it."""

    one_choice: bool = False  # one of several possible ways to combine other metrics; every table marks it
    utility: bool = False  # measures the utility of the model; charts and `compare` set it against forgetting
    about_text: bool = False  # measures text quality: distance to the oracle and excess are not shown
    two_sided: bool = False  # values above and below the oracle's reveal the rows: excess is not shown
    needs_target: bool = False  # uses the target, so it succeeds even on the oracle: distance is not shown
    chart: Literal["", "distribution", "bars"] = ""  # kind of chart that the report draws for the forget rows


METRICS = Registry("metric", Metric)
metric = METRICS.register_with
_UNREGISTERED = Metric("metric", "", float)


def metric_of(line: Mapping[str, Any], name: str = "") -> Metric:
    """Return the metric of a line of results.json, or the metric ``name`` if the line has no key ``metric``.

    If the metric is not registered, return a placeholder without properties.
    """
    return METRICS.find(line.get("metric", name)) or _UNREGISTERED


def is_one_choice(line: Mapping[str, Any]) -> bool:
    """Return whether the metric of a line is one of several possible ways to combine other metrics."""
    return metric_of(line).one_choice
