"""The words of an answer, and the word that each target token belongs to."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llm_forget.core.ignore_label import IGNORE
from llm_forget.data.names import capitalised_words

CONTEXT = 8  # earlier tokens to decode with a token, as a character may be split over up to four tokens


class AnswerWords:
    """The words of one answer, and the word of each target token. Tokens are decoded when a property is first read."""

    def __init__(self, windows: Sequence[tuple[list[int], list[int]]], tokenizer: Any, question: str = "") -> None:
        """``windows`` are pairs (input ids, labels), one for each window of the answer, in order."""
        self._windows, self._tokenizer, self._question = windows, tokenizer, question

    @cached_property
    def words(self) -> list[str]:
        """The words of the answer: runs of letters, digits and underscores."""
        return [match.group() for match in self._matches]

    @cached_property
    def places(self) -> NDArray[np.int64]:
        """Index in `words` of the word of each target token, ``[n]``; -1 for punctuation and the end of the answer."""
        ends = list(accumulate(map(len, self._pieces)))
        spans = ((end - len(piece), end) for piece, end in zip(self._pieces, ends, strict=True))
        return np.array([self._place(*span) for span in spans], dtype=np.int64)

    @cached_property
    def names(self) -> NDArray[np.bool_]:
        """Whether the word of each target token also occurs in the question and is capitalised there, ``[n]``."""
        capitalised = capitalised_words(self._question)
        return np.array([place >= 0 and self.words[place] in capitalised for place in self.places], dtype=np.bool_)

    @cached_property
    def _matches(self) -> list[re.Match[str]]:
        return list(re.finditer(r"\w+", "".join(self._pieces)))

    def _place(self, start: int, end: int) -> int:
        place = bisect_right(self._matches, start, key=lambda word: word.end())
        # A token with a part of a character has no text of its own: it belongs to the word around it.
        inside = place < len(self._matches) and self._matches[place].start() < max(end, start + 1)
        return place if inside else -1

    @cached_property
    def _pieces(self) -> list[str]:
        """The text that each target token adds to the text of the tokens before it, ``[n]``."""
        parts: list[list[int]] = []
        for ids, labels in self._windows:
            for i in (i for i in range(1, len(ids)) if labels[i] != IGNORE):
                parts += [ids[max(0, i - CONTEXT) : i], ids[max(0, i - CONTEXT) : i + 1]]
        if not parts:  # batch_decode gives one text for no ids
            return []
        options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
        texts = [text.rstrip("\ufffd") for text in self._tokenizer.batch_decode(parts, **options)]
        return [whole[len(before) :] for before, whole in zip(texts[::2], texts[1::2], strict=True)]
