"""Search a stream of bytes in all forms, block by block, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from llm_forget.residue.match import Match, Matcher
from llm_forget.residue.needles import Sought, needles
from llm_forget.residue.transforms import View, encoding_of, views

OVERLAP = 2**14  # bytes that two blocks share: a find may lie across their border, spread over so many


@dataclass(frozen=True)
class Hit:
    """Of a row, so many letters and digits in a row out of all, in this form, from this byte of the stream on."""

    row: int
    encoding: str
    offset: int
    characters: int
    of: int
    last: int = field(compare=False)  # where the first of its parts ends


class Searcher:
    """The matchers of both alphabets."""

    def __init__(self, texts: Sequence[Sought], window: int) -> None:
        self.texts = texts
        simple, encoded, self.short = needles(texts, window)
        self.simple, self.encoded = Matcher(simple), Matcher(encoded)

    def matches(self, stream: Iterable[tuple[int, bytes]]) -> Iterator[Match]:
        """Everything that is found unpacked and not in base64, block by block."""
        for joined, _ in _joined(stream):
            for view in views(joined, base64=False):
                yield from self.simple.matches(view.data)

    def search(self, stream: Iterable[tuple[int, bytes]]) -> list[Hit]:
        """The most that is found of each row in each encoding; ``stream`` gives blocks and where they begin."""
        runs: dict[tuple[str, int], _Runs] = {}
        for joined, base in _joined(stream):
            for view in views(joined):
                matcher = self._matcher(view.kind)
                for match in matcher.matches(view.data):
                    if (view.kind, match.needle) not in runs:
                        runs[view.kind, match.needle] = self._located(match, view, joined, base)
                    runs[view.kind, match.needle].add(match.begin, match.end)
        hits = [self._hit(self._matcher(kind), number, run) for (kind, number), run in runs.items()]
        return sorted(_best(hits), key=lambda hit: (hit.row, hit.offset))

    def _located(self, match: Match, view: View, block: bytes, base: int) -> _Runs:
        first, last = view.source(match.place, match.place + match.end - match.begin - 1)
        needle = self._matcher(view.kind).needles[match.needle]
        encoding = encoding_of(view, block, first, last, needle.encoding, self.texts[needle.text].text)
        return _Runs(base + first, base + last, encoding)

    def _matcher(self, kind: str) -> Matcher:
        return self.encoded if kind == "base64" else self.simple

    def _hit(self, matcher: Matcher, number: int, run: _Runs) -> Hit:
        needle = matcher.needles[number]
        text = self.texts[needle.text]
        whole = run.longest() == len(needle.data)
        characters = needle.characters if whole else int(run.longest() * needle.characters / len(needle.data))
        return Hit(text.row, run.encoding, run.first, min(text.of, characters), text.of, run.last)


def _best(hits: list[Hit]) -> list[Hit]:
    """Of each row and encoding the longest; forms that say the same bytes, only less of them, are left out."""
    kept: list[Hit] = []
    for hit in sorted(hits, key=lambda hit: hit.characters / hit.of, reverse=True):
        others = [other for other in kept if other.row == hit.row]
        same = any(other.encoding == hit.encoding or other.offset <= hit.offset < other.last for other in others)
        if not same and not any(hit.offset <= other.offset < hit.last for other in others):
            kept.append(hit)
    return kept


def _joined(stream: Iterable[tuple[int, bytes]]) -> Iterator[tuple[bytes, int]]:
    """Blocks that begin with the end of the one before, and where they begin."""
    tail, behind = b"", -1
    for start, block in stream:
        joined = tail + block if start == behind else block
        yield joined, start + len(block) - len(joined)
        tail, behind = joined[-OVERLAP:], start + len(block)


class _Runs:
    """Parts of a needle that were found, where the first of them lies, and in which encoding."""

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
