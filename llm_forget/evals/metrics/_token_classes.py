"""Classes of target tokens: a name that the question gives, a fact that the oracle would not say, or the template."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from llm_forget.evals.records import TokenRecord

CLASSES = ("name", "fact", "template")


def token_classes(record: TokenRecord, oracle: TokenRecord) -> NDArray[np.str_] | None:
    """Return the class of each target token, ``[n]``; None if the words are unknown or the oracle gives no numbers.

    A token is ``name`` if it belongs to a word that is capitalised in the question, else ``fact`` if another token is
    the oracle's most likely one, else ``template``.
    """
    if record.answer is None or oracle.broken or record.n != oracle.n:
        return None
    return np.where(record.answer.names, "name", np.where(oracle.hits, "template", "fact"))


def fact_tokens(record: TokenRecord, oracle: TokenRecord) -> NDArray[np.bool_] | None:
    """Return whether each target token belongs to a word and has the class ``fact``, ``[n]``; None if not known."""
    classes = token_classes(record, oracle)
    return None if classes is None or record.answer is None else (classes == "fact") & (record.answer.places >= 0)


def fact_words(record: TokenRecord, oracle: TokenRecord) -> list[list[str]]:
    """Return the runs of neighbouring words of an answer that hold tokens of the class ``fact``."""
    facts = fact_tokens(record, oracle)
    if facts is None or record.answer is None:
        return []
    places = sorted(set(record.answer.places[facts].tolist()))
    runs: list[list[str]] = []
    for place in places:
        if not runs or place - 1 not in places:
            runs.append([])
        runs[-1].append(record.answer.words[place])
    return runs
