"""Registry of metrics; a separate module, so that metric modules can be imported one by one."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from llm_forget.core.registry import Entry, Registry

ONE_CHOICE = "one choice of several"


@dataclass(frozen=True)
class Metric(Entry):
    """A metric and what readers of results need to know of it."""

    one_choice: bool = False  # combines other lines in one of several possible ways; every table marks it
    utility: bool = False  # of the whole model: compared with forgetting in the plane and in `compare`
    about_text: bool = False  # measures the quality of the text: no distance to the oracle, no excess of an attack
    two_sided: bool = False  # both sides of the oracle's value reveal the rows: no excess of an attack
    needs_target: bool = False  # the attack compares with the target, so it succeeds even on the oracle: no distance
    chart: Literal["", "distribution", "bars"] = ""  # that the report draws of the forget rows


METRICS = Registry("metric", Metric)
metric = METRICS.register_with
_UNREGISTERED = Metric("metric", "", float)


def metric_of(line: Mapping[str, Any], name: str = "") -> Metric:
    """The metric of a line of results.json or attack.json, or else the one of the line's name.

    One of another package has no properties.
    """
    return METRICS.find(line.get("metric", name)) or _UNREGISTERED


def is_one_choice(line: Mapping[str, Any]) -> bool:
    """Whether a line is a score that combines other lines in one of several ways."""
    return metric_of(line).one_choice
