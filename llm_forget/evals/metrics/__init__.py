"""Metrics: arithmetic on the records of probes and on other metrics, one per file.

The inputs of a metric (positional arguments) are the records of a probe, the per-row values of a line above, or a list
of those; an input called ``oracle_x`` or ``before_x`` receives the ``x`` of the oracle or of the target. A metric
returns one value per row (``[N]``, NaN = unscored), one number for the split, or an `Estimate`, a number with its own
interval. The goal of a line belongs to the suite, not to the metric.
"""

import importlib
import pkgutil

from llm_forget.evals.metrics._registry import METRICS, ONE_CHOICE, is_one_choice, metric, metric_of

for _sibling in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_sibling.name}")

__all__ = ["METRICS", "ONE_CHOICE", "is_one_choice", "metric", "metric_of"]
