"""Remove the parts of search texts that also occur in known texts. A match of such a part would prove nothing."""

from collections.abc import Iterable, Sequence

import numpy as np

from llm_forget.residue.match import Match, Needle
from llm_forget.residue.needles import SearchText
from llm_forget.residue.transforms import plain


def remove_known_text(
    texts: Sequence[SearchText], needles: Sequence[Needle], matches: Iterable[Match], window: int
) -> list[SearchText]:
    """Return the parts of ``texts`` that have no ``window`` consecutive letters and digits in common with a known text.

    ``matches`` are the matches of ``needles`` in the known text. Matches of other encodings of a text are ignored.
    """
    known_starts = {number: np.zeros(len(_character_of_byte(text)), bool) for number, text in enumerate(texts)}
    as_written = {number: plain(text.text.encode("utf-8", "replace")) for number, text in enumerate(texts)}
    for match in matches:
        needle = needles[match.needle]
        if needle.data == as_written[needle.text]:
            # A window within one match is known. The mask marks the starts of known windows.
            size = min(needle.need, len(needle.data))
            known_starts[needle.text][match.begin : match.end - size + 1] = True
    remaining: list[SearchText] = []
    for number, text in enumerate(texts):
        remaining += _unknown_parts(text, known_starts[number], window) if known_starts[number].any() else [text]
    return remaining


def _character_of_byte(text: SearchText) -> list[int]:
    """Return, for each byte of a text's plain form (`transforms.plain`), the index of its character in the text."""
    return [number for number, character in enumerate(text.text) for _ in plain(character.encode("utf-8", "replace"))]


def _unknown_parts(text: SearchText, known_starts: np.ndarray, window: int) -> list[SearchText]:
    origin = _character_of_byte(text)
    size = min(len(origin), max(1, round(window * len(origin) / max(1, text.of))))
    free = ~known_starts[: len(origin) - size + 1]  # [positions where a window may begin]
    edges = np.flatnonzero(np.diff(np.concatenate([[0], free.astype(int), [0]])))
    spans = zip(edges[::2], edges[1::2], strict=True)
    return [
        SearchText(text.row, text.text[origin[first] : origin[last + size - 2] + 1], text.of) for first, last in spans
    ]
