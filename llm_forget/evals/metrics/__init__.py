"""Metrics: arithmetic on the records of probes and on other metrics, one per file.

The inputs of a metric (positional arguments) are the records of a probe, the per-row values of an earlier line, or a
list of such values. An input called ``oracle_x`` receives the input ``x`` of the oracle, and ``before_x`` that of the
target. A metric returns one value per row (``[N]``, NaN = unscored), one number for the split, or an `Estimate`, which
is a number with its interval. The suite, not the metric, sets the goal of a line.
"""

import importlib
import pkgutil

from llm_forget.evals.metrics._registry import METRICS, ONE_CHOICE, is_one_choice, metric, metric_of

for _sibling in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_sibling.name}")

__all__ = ["METRICS", "ONE_CHOICE", "is_one_choice", "metric", "metric_of"]
