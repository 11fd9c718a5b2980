"""Metrics: functions that compute numbers from the records of probes and from other metrics, one per file.

A metric returns one value per row (``[N]``, NaN = unscored), one number for the whole split, or an `Estimate` (a number
with its interval). An input called ``x`` belongs to the evaluated model. An input called ``oracle_x`` is the same input
of the oracle (a model that never saw the forget rows), and ``before_x`` that of the target (the model before
unlearning).
"""

import importlib
import pkgutil

from llm_forget.evals.metrics._registry import METRICS, ONE_CHOICE, is_one_choice, metric, metric_of

for _sibling in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_sibling.name}")

__all__ = ["METRICS", "ONE_CHOICE", "is_one_choice", "metric", "metric_of"]
