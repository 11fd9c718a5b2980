"""Search a stream of bytes for all forms of the search texts, block by block, so that memory use is bounded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from llm_forget.residue.match import Match, Matcher
from llm_forget.residue.needles import SearchText, needles
from llm_forget.residue.transforms import View, encoding_of, views

OVERLAP = 2**14  # bytes that two blocks share, so that a match of minimum length is not split


@dataclass(frozen=True)
class Hit:
    """A match of a row's text in a stream."""

    row: int
    encoding: str
    offset: int  # position in the stream, bytes
    characters: int  # number of letters and digits that match
    of: int  # number of letters and digits in the whole text
    last: int = field(compare=False)  # end of the first matched part in the stream


class Searcher:
    """A search for texts in streams, with one matcher for plain bytes and one for base64."""

    def __init__(self, texts: Sequence[SearchText], window: int) -> None:
        self.texts = texts
        simple, encoded, self.short = needles(texts, window)
        self.simple, self.encoded = Matcher(simple), Matcher(encoded)

    def matches(self, stream: Iterable[tuple[int, bytes]]) -> Iterator[Match]:
        """Yield all matches in a stream of (offset, block), except matches in base64."""
        for joined, _ in _overlapping(stream):
            for view in views(joined, base64=False):
                yield from self.simple.matches(view.data)

    def search(self, stream: Iterable[tuple[int, bytes]]) -> list[Hit]:
        """Return the longest match of each row in each encoding. ``stream`` yields (offset, block)."""
        runs: dict[tuple[str, int], _MatchedSpans] = {}
        for joined, base in _overlapping(stream):
            for view in views(joined):
                matcher = self._matcher(view.kind)
                for match in matcher.matches(view.data):
                    if (view.kind, match.needle) not in runs:
                        runs[view.kind, match.needle] = self._spans(match, view, joined, base)
                    runs[view.kind, match.needle].add(match.begin, match.end)
        hits = [self._hit(self._matcher(kind), number, run) for (kind, number), run in runs.items()]
        return sorted(_best_hits(hits), key=lambda hit: (hit.row, hit.offset))

    def _spans(self, match: Match, view: View, block: bytes, base: int) -> _MatchedSpans:
        first, last = view.source(match.offset, match.offset + match.end - match.begin - 1)
        needle = self._matcher(view.kind).needles[match.needle]
        encoding = encoding_of(view, block, first, last, needle.encoding, self.texts[needle.text].text)
        return _MatchedSpans(base + first, base + last, encoding)

    def _matcher(self, kind: str) -> Matcher:
        return self.encoded if kind == "base64" else self.simple

    def _hit(self, matcher: Matcher, number: int, run: _MatchedSpans) -> Hit:
        needle = matcher.needles[number]
        text = self.texts[needle.text]
        whole = run.longest() == len(needle.data)
        characters = needle.characters if whole else int(run.longest() * needle.characters / len(needle.data))
        return Hit(text.row, run.encoding, run.first, min(text.of, characters), text.of, run.last)


def _best_hits(hits: list[Hit]) -> list[Hit]:
    """Return the longest hit of each row and encoding, without hits that overlap a longer hit of the same row."""
    selected: list[Hit] = []
    for hit in sorted(hits, key=lambda hit: hit.characters / hit.of, reverse=True):
        others = [other for other in selected if other.row == hit.row]
        same = any(other.encoding == hit.encoding or other.offset <= hit.offset < other.last for other in others)
        if not same and not any(hit.offset <= other.offset < hit.last for other in others):
            selected.append(hit)
    return selected


def _overlapping(stream: Iterable[tuple[int, bytes]]) -> Iterator[tuple[bytes, int]]:
    """Yield (block, offset). Each block begins with the last `OVERLAP` bytes of the block before it."""
    tail, end = b"", -1
    for start, block in stream:
        joined = tail + block if start == end else block
        yield joined, start + len(block) - len(joined)
        tail, end = joined[-OVERLAP:], start + len(block)


class _MatchedSpans:
    """The parts of a needle that were matched, and the position and encoding of the first match."""

    def __init__(self, first: int, last: int, encoding: str) -> None:
        self.first, self.last, self.encoding = first, last, encoding
        self.spans: list[tuple[int, int]] = []

    def add(self, begin: int, end: int) -> None:
        joined = [(begin, end)]
        for first, last in self.spans:
            if first <= joined[0][1] and joined[0][0] <= last:
                joined[0] = (min(first, joined[0][0]), max(last, joined[0][1]))
            else:
                joined.append((first, last))
        self.spans = joined

    def longest(self) -> int:
        return max(end - begin for begin, end in self.spans)
