"""The parts of a report in any format. All strings are untrusted plain text; `html` and `markdown` escape them."""

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
MAX_ROWS = 200  # maximum rows of a table on the page


class Number(NamedTuple):
    """A value, with a note in smaller type, such as the interval of the value."""

    value: str
    note: str = ""


Cell = str | Number
Row = tuple[Cell, ...]


@dataclass(frozen=True)
class Text:
    """A paragraph. A warning is highlighted."""

    kind: ClassVar[str] = "text"
    text: str
    warning: bool = False


@dataclass(frozen=True)
class Table:
    """A table. The first cell of each row is the header of the row."""

    kind: ClassVar[str] = "table"
    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Chart:
    """A chart, with a description and with its numbers as a table."""

    kind: ClassVar[str] = "chart"
    title: str
    description: str
    svg: str  # a complete <svg> element without external references
    table: Table


@dataclass(frozen=True)
class Verdict:
    """The answer to one question, with the findings that support it."""

    kind: ClassVar[str] = "verdict"
    question: str
    answer: str  # yes | no | inconclusive | pass | fail
    findings: tuple[tuple[bool | None, str], ...]  # whether a bound holds (None: inconclusive), and a sentence
    caution: str = ""


@dataclass(frozen=True)
class Generated:
    """Texts that a model generated: the only block with text of rows. Only HTML shows it, and only on request."""

    kind: ClassVar[str] = "generated"
    rows: tuple[tuple[str, str], ...]  # id, text


Block = Text | Table | Chart | Verdict | Generated


@dataclass(frozen=True)
class Section:
    """A heading with blocks and subsections."""

    title: str
    blocks: tuple[Block, ...] = ()
    parts: tuple[Section, ...] = ()

    def filled(self) -> Section | None:
        """Return the section without its empty parts; None if the section itself is then empty."""
        parts = tuple(part for part in map(Section.filled, self.parts) if part is not None)
        return Section(self.title, self.blocks, parts) if self.blocks or parts else None

    def groups(self) -> list[list[Block]]:
        """Group adjacent blocks of the same kind. The page lays out each group in a grid."""
        return [list(group) for _, group in groupby(self.blocks, key=lambda block: block.kind)]

    def walk(self) -> Iterator[Block]:
        """Iterate over all blocks in order, including the blocks of subsections."""
        yield from self.blocks
        for part in self.parts:
            yield from part.walk()


@dataclass(frozen=True)
class Document:
    """A report: title, subtitle and sections."""

    title: str
    subtitle: str
    sections: tuple[Section, ...]

    @property
    def holds_text(self) -> bool:
        """Whether the document holds text of rows."""
        return any(isinstance(block, Generated) for section in self.sections for block in section.walk())


def document(title: str, subtitle: str, sections: list[Section]) -> Document:
    """Build a document from those sections that are not empty."""
    return Document(title, subtitle, tuple(section for section in map(Section.filled, sections) if section is not None))


def interval(ci: list[float] | None) -> str:
    """Format an interval as ``0.029–0.044``, or as ``-0.1 to 0.2`` if its lower end is negative; empty for None."""
    if not ci:
        return ""
    return f"{shown(ci[0])}{' to ' if ci[0] < 0 else '–'}{shown(ci[1])}"


def first_rows(rows: list[Row]) -> tuple[Row, ...]:
    """Return at most `MAX_ROWS` rows. If rows are left out, a last row states their number."""
    if len(rows) <= MAX_ROWS:
        return tuple(rows)
    rest = (f"and {len(rows) - MAX_ROWS} more, see rows.json", *[""] * (len(rows[0]) - 1))
    return (*rows[:MAX_ROWS], rest)


def anchor(*words: str) -> str:
    """Return an HTML and CSS id that is made from ``words`` and differs for different words."""
    readable = "-".join(re.sub(r"[^a-z0-9]+", "-", word.lower()).strip("-") for word in words)[:40].strip("-")
    return f"{readable or 'x'}-{hashlib.sha256(repr(words).encode()).hexdigest()[:8]}"
