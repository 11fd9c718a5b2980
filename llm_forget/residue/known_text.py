"""Leave out of the texts what other, known texts say as well: that would be found without anything being left."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from llm_forget.residue.match import Match, Needle
from llm_forget.residue.needles import Sought
from llm_forget.residue.transforms import plain


def without_known(
    texts: Sequence[Sought], needles: Sequence[Needle], found: Iterable[Match], window: int
) -> list[Sought]:
    """The parts of the texts of which no ``window`` letters and digits in a row are known.

    ``found`` are matches in what is known, of ``needles`` of these texts; those of a text as it is written count.
    """
    known = {number: np.zeros(len(_bytes(text)), bool) for number, text in enumerate(texts)}
    as_written = {number: plain(text.text.encode("utf-8", "replace")) for number, text in enumerate(texts)}
    for match in found:
        needle = needles[match.needle]
        if needle.data == as_written[needle.text]:
            # A window is known if it lies within one match; marked is the place where it begins.
            size = min(needle.need, len(needle.data))
            known[needle.text][match.begin : match.end - size + 1] = True
    kept: list[Sought] = []
    for number, text in enumerate(texts):
        kept += _parts(text, known[number], window) if known[number].any() else [text]
    return kept


def _bytes(text: Sought) -> list[int]:
    """For each byte of the plain form, which character of the text it comes from."""
    return [place for place, character in enumerate(text.text) for _ in plain(character.encode("utf-8", "replace"))]


def _parts(text: Sought, known: np.ndarray, window: int) -> list[Sought]:
    origin = _bytes(text)
    size = min(len(origin), max(1, round(window * len(origin) / max(1, text.of))))
    free = ~known[: len(origin) - size + 1]  # [places where a window may begin]
    edges = np.flatnonzero(np.diff(np.concatenate([[0], free.astype(int), [0]])))
    spans = zip(edges[::2], edges[1::2], strict=True)
    return [Sought(text.row, text.text[origin[first] : origin[last + size - 2] + 1], text.of) for first, last in spans]
