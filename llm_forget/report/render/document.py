"""The parts of a report, without a format: `html` and `markdown` each write the same document.

All strings are plain text. The renderers escape them for their format and make control characters visible, so nobody
else does: ids, names of runs and names of lines are other people's input.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import ClassVar, NamedTuple

from llm_forget.core.text import shown

MARKS = {True: "✓", False: "✗", None: "?"}
ANSWER_MARKS = {"yes": "✓", "pass": "✓", "no": "✗", "fail": "✗", "inconclusive": "?"}
LONGEST = 200  # rows of a table on the page


class Number(NamedTuple):
    """A value and, in smaller type, its interval or what else belongs to it."""

    value: str
    note: str = ""


Cell = str | Number


@dataclass(frozen=True)
class Text:
    """A paragraph; a warning stands out."""

    kind: ClassVar[str] = "text"
    text: str
    warning: bool = False


@dataclass(frozen=True)
class Table:
    """The first cell of each row names it."""

    kind: ClassVar[str] = "table"
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True)
class Chart:
    """A picture, in words, and as numbers."""

    kind: ClassVar[str] = "chart"
    title: str
    description: str
    svg: str  # a complete element that refers to nothing outside itself
    table: Table


@dataclass(frozen=True)
class Verdict:
    """The answer to one question, and the bounds it rests on."""

    kind: ClassVar[str] = "verdict"
    question: str
    answer: str  # yes | no | inconclusive | pass | fail
    findings: tuple[tuple[bool | None, str], ...]
    caution: str = ""


@dataclass(frozen=True)
class Generated:
    """What a model said: the one part that holds text of rows; for HTML only, and only when asked for."""

    kind: ClassVar[str] = "generated"
    rows: tuple[tuple[str, str], ...]  # id, text


Block = Text | Table | Chart | Verdict | Generated


@dataclass(frozen=True)
class Section:
    title: str
    blocks: tuple[Block, ...] = ()
    parts: tuple[Section, ...] = ()

    def filled(self) -> Section | None:
        """Without parts that say nothing; None when nothing is left."""
        parts = tuple(part for part in map(Section.filled, self.parts) if part is not None)
        return Section(self.title, self.blocks, parts) if self.blocks or parts else None

    def groups(self) -> list[list[Block]]:
        """The blocks, neighbours of one kind together: charts and verdicts stand beside each other."""
        return [list(group) for _, group in groupby(self.blocks, key=lambda block: block.kind)]

    def walk(self) -> Iterator[Block]:
        """All blocks, in order."""
        yield from self.blocks
        for part in self.parts:
            yield from part.walk()


@dataclass(frozen=True)
class Document:
    title: str
    subtitle: str
    sections: tuple[Section, ...]

    @property
    def holds_text(self) -> bool:
        """Whether it holds text of rows."""
        return any(isinstance(block, Generated) for section in self.sections for block in section.walk())


def document(title: str, subtitle: str, sections: list[Section]) -> Document:
    """A document of the sections that say something."""
    return Document(title, subtitle, tuple(kept for kept in map(Section.filled, sections) if kept is not None))


def interval(ci: list[float] | None) -> str:
    """``0.029–0.044``; with a negative end ``-0.1 to 0.2``; empty without one."""
    if not ci:
        return ""
    return f"{shown(ci[0])}{' to ' if ci[0] < 0 else '–'}{shown(ci[1])}"


def first_rows(rows: list[tuple[Cell, ...]]) -> tuple[tuple[Cell, ...], ...]:
    """At most `LONGEST` rows, and a last one that says how many there are."""
    if len(rows) <= LONGEST:
        return tuple(rows)
    rest = (f"and {len(rows) - LONGEST} more, see rows.json", *[""] * (len(rows[0]) - 1))
    return (*rows[:LONGEST], rest)


def anchor(*words: str) -> str:
    """An id that is a name in HTML and in CSS, and another for other words, whatever these are made of."""
    readable = "-".join(re.sub(r"[^a-z0-9]+", "-", word.lower()).strip("-") for word in words)[:40].strip("-")
    return f"{readable or 'x'}-{hashlib.sha256(repr(words).encode()).hexdigest()[:8]}"
