"""The distance between the token distributions of the model and of the oracle."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llm_forget.core.errors import EvaluationError
from llm_forget.evals.distributions import kl_lower_bound
from llm_forget.evals.metrics._registry import metric
from llm_forget.evals.records import TokenRecord, aligned
from llm_forget.evals.stats import Rows


@metric(paper="arXiv:2310.02238", needs={"top"})
def kl_to_oracle(records: Sequence[TokenRecord], oracle_records: Sequence[TokenRecord]) -> Rows:
    """Return KL(oracle || model), averaged over the target tokens of each row; ``[N]``, nats per token, at least 0.

    The value is 0 for the oracle itself. The probe stores the ``top`` most likely tokens of each distribution, and all
    other tokens count as one group. The value is therefore a lower bound of the true divergence. It is exact if ``top``
    is at least the size of the vocabulary.

    Raises EvaluationError if the probe has no ``top``.
    """
    return np.array([_row(*answers) for answers in aligned(records, oracle_records)], dtype=np.float64)


def _row(own: Sequence[TokenRecord], oracle: Sequence[TokenRecord]) -> float:
    others = {record.key: record for record in oracle}
    parts = []
    for record in own:
        other = others[record.key]
        if record.top is None or other.top is None:
            raise EvaluationError("metric 'kl_to_oracle' needs the key 'top' of its probe, as in top: 256")
        if not record.broken and not other.broken:
            parts.append(kl_lower_bound(other.top, record.top))
    values = np.concatenate(parts) if parts else np.zeros(0)
    return max(0.0, float(values.mean())) if len(values) else float("nan")
