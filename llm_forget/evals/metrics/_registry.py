"""Registry of metrics, in its own module to avoid circular imports."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from llm_forget.core.registry import Entry, Registry

ONE_CHOICE = "one choice of several"


@dataclass(frozen=True)
class Metric(Entry):
    """A metric, and the properties that decide how tables, charts and comparisons show it."""

    one_choice: bool = False  # combines other lines in one of several possible ways; every table marks it
    utility: bool = False  # measures the whole model; compared with forgetting in the plane and in `compare`
    about_text: bool = False  # measures text quality, so no distance to the oracle or excess of an attack is shown
    two_sided: bool = False  # values on both sides of the oracle's reveal the rows, so no excess is shown
    needs_target: bool = False  # uses the target, so it succeeds even on the oracle, and no distance is shown
    chart: Literal["", "distribution", "bars"] = ""  # kind of chart that the report draws for the forget rows


METRICS = Registry("metric", Metric)
metric = METRICS.register_with
_UNREGISTERED = Metric("metric", "", float)


def metric_of(line: Mapping[str, Any], name: str = "") -> Metric:
    """Return the metric of a line of results.json, or the metric ``name`` if the line has no key ``metric``.

    For a metric that is not registered, return a placeholder without properties.
    """
    return METRICS.find(line.get("metric", name)) or _UNREGISTERED


def is_one_choice(line: Mapping[str, Any]) -> bool:
    """Whether a line is a score that combines other lines in one of several possible ways."""
    return metric_of(line).one_choice
