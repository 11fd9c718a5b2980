"""Render a document as Markdown: tables and verdicts, without charts and without text of rows."""

import re
from collections.abc import Iterator

from llm_forget.core.errors import RunError
from llm_forget.core.text import plain
from llm_forget.report.render import document as parts
from llm_forget.report.render.document import ANSWER_MARKS, MARKS, Cell, Document, Section, Table

ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "@": "&#64;", "#": "&#35;", "|": "&#124;"}


def to_markdown(document: Document) -> str:
    """Return a document as Markdown. Markdown and HTML syntax in its values is escaped."""
    parts = [f"# {escape(document.title)}", escape(document.subtitle)]
    for section in document.sections:
        parts += _section(section, 2)
    return "\n\n".join(parts) + "\n"


def table(content: Table) -> str:
    """Return a table as a Markdown pipe table. Columns of numbers are right-aligned."""
    width = len(content.columns)
    rows = [
        [escape(column) for column in content.columns],
        ["---", *("---" if all(isinstance(row[i], str) for row in content.rows) else "---:" for i in range(1, width))],
        *([_cell(cell) for cell in row] for row in content.rows),
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def escape(text: str) -> str:
    """Escape text so that it cannot create HTML, a link, image, mention, emphasis, formula or table cell."""
    text = "".join(ENTITIES.get(character, character) for character in re.sub(r"([\\`*\[\]~$])", r"\\\1", plain(text)))
    text = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text)  # inside a word, Markdown leaves an underscore unchanged
    return re.sub(r"(?i)(www)\.", r"\1\\.", text.replace("://", "\\://"))


def _section(section: Section, level: int) -> Iterator[str]:
    yield f"{'#' * level} {escape(section.title)}"
    for block in section.blocks:
        yield from _block(block)
    for part in section.parts:
        yield from _section(part, min(6, level + 1))


def _block(block: parts.Block) -> Iterator[str]:
    match block:
        case parts.Text():
            yield f"**Note:** {escape(block.text)}" if block.warning else escape(block.text)
        case Table():
            yield f"**{escape(block.title)}**"
            yield table(block)
        case parts.Chart():
            yield f"**{escape(block.title)}.** {escape(block.description)}"
            yield table(block.table)
        case parts.Verdict():
            yield f"**{escape(block.question)}: {ANSWER_MARKS[block.answer]} {escape(block.answer)}**"
            yield "\n".join(f"- {MARKS[holds]} {escape(sentence)}" for holds, sentence in block.findings)
            if block.caution:
                yield f"**Note:** {escape(block.caution)}"
        case _:
            raise RunError("generated text is written to HTML only; remove it before writing Markdown")


def _cell(cell: Cell) -> str:
    if isinstance(cell, str):
        return escape(cell)
    return escape(f"{cell.value} ({cell.note})" if cell.note else cell.value)
