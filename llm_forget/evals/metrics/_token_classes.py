"""The classes of target tokens: ``name``, ``fact`` and ``template``; see `token_classes`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from llm_forget.evals.records import TokenRecord

CLASSES = ("name", "fact", "template")


def token_classes(record: TokenRecord, oracle: TokenRecord) -> NDArray[np.str_] | None:
    """Return the class of each target token, ``[n]``; None if the words are unknown or the oracle's record is unusable.

    A token is a ``name`` if its word is capitalised in the question. Otherwise it is a ``fact`` if the oracle ranks
    another token first, and part of the ``template`` if the oracle ranks the token first.
    """
    if record.answer is None or oracle.broken or record.n != oracle.n:
        return None
    return np.where(record.answer.names, "name", np.where(oracle.hits, "template", "fact"))


def fact_tokens(record: TokenRecord, oracle: TokenRecord) -> NDArray[np.bool_] | None:
    """Return for each target token whether it is in a word and of the class ``fact``; ``[n]``, or None if unknown."""
    classes = token_classes(record, oracle)
    return None if classes is None or record.answer is None else (classes == "fact") & (record.answer.places >= 0)


def fact_words(record: TokenRecord, oracle: TokenRecord) -> list[list[str]]:
    """Return the words of an answer that contain a token of class ``fact``; neighbouring words form one list."""
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
