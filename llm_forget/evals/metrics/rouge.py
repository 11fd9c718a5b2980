"""ROUGE scores of generated answers."""

from __future__ import annotations

from collections.abc import Sequence

from llm_forget.core.errors import EvaluationError
from llm_forget.core.registry import did_you_mean
from llm_forget.evals.metrics._registry import metric
from llm_forget.evals.metrics._sequences import over_samples
from llm_forget.evals.records import GenerationRecord
from llm_forget.evals.stats import Rows

MEASURES = {"recall": "recall", "precision": "precision", "f1": "fmeasure"}


@metric(paper="arXiv:2401.06121")
def rouge(
    generations: Sequence[GenerationRecord], *, variant: str = "rougeL", measure: str = "recall", stem: bool = True
) -> Rows:
    """Return ROUGE of the generated answer, compared with the true answer; ``[N]``, in [0, 1].

    The default is TOFU's ROUGE-L recall (section 3.1). Words are runs of ASCII letters and digits, as in
    ``rouge-score``, so text in other scripts scores 0. The samples of a row are averaged. Rows without a true answer
    are unscored.

    Args:
        variant: ``rougeL``, ``rouge1``, ``rouge2``, ...
        measure: ``recall``, ``precision`` or ``f1``.
        stem: compare word stems (Porter), like TOFU; MUSE compares unstemmed words.
    """
    from rouge_score.rouge_scorer import RougeScorer

    if measure not in MEASURES:
        raise EvaluationError(f"metric 'rouge' has no measure '{measure}'; {did_you_mean(measure, MEASURES)}")
    scorer = RougeScorer([variant], use_stemmer=stem)

    def score(record: GenerationRecord) -> float:
        if not record.reference:
            return float("nan")
        return float(getattr(scorer.score(record.reference, record.text)[variant], MEASURES[measure]))

    return over_samples(generations, score)
