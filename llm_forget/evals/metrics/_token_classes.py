"""Classes of target tokens: a name that the prompt gives, a fact that the oracle would not say, or the template."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from llm_forget.evals.records import TokenRecord

CLASSES = ("name", "fact", "template")


def token_classes(record: TokenRecord, oracle: TokenRecord) -> NDArray[np.str_] | None:
    """Return the class of each target token, ``[n]``; None if the words are unknown or the oracle gives no numbers.

    A token is ``name`` if it belongs to a word that is capitalised in the prompt, else ``fact`` if another token is the
    oracle's most likely one, else ``template``.
    """
    if record.answer is None or oracle.broken or record.n != oracle.n:
        return None
    return np.where(record.answer.names, "name", np.where(oracle.hits, "template", "fact"))


def fact_words(record: TokenRecord, oracle: TokenRecord) -> list[list[str]]:
    """Return the runs of neighbouring words of an answer that hold tokens of the class ``fact``."""
    classes = token_classes(record, oracle)
    if classes is None or record.answer is None:
        return []
    places = sorted({int(place) for place in record.answer.places[classes == "fact"] if place >= 0})
    runs: list[list[str]] = []
    for place in places:
        if not runs or place - 1 not in places:
            runs.append([])
        runs[-1].append(record.answer.words[place])
    return runs
