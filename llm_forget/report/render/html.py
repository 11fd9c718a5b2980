"""Render a document as one self-contained HTML file without scripts, external fonts or images."""

import functools
import re
from typing import Any

from llm_forget.core.text import plain
from llm_forget.report.render.document import ANSWER_MARKS, MARKS, Document, anchor

TEMPLATE = "page.html.jinja"
LONG = re.compile(r"(\S{24,})")


def to_html(document: Document) -> str:
    """Return a document as an HTML page. All content except the charts is escaped."""
    return str(_template().render(document=document)) + "\n"


@functools.cache
def _template() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("llm_forget.report.render", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )

    def words(text: str) -> Any:
        """Escape text. Allow line breaks after underscores, and anywhere in a word of 24 or more characters."""
        return Markup("_<wbr>").join(map(breakable, plain(text).split("_")))

    def breakable(text: str) -> Any:
        pieces = LONG.split(text)
        pieces[1::2] = (Markup('<span class="long">{}</span>').format(piece) for piece in pieces[1::2])
        return Markup("").join(pieces)

    environment.filters.update(words=words, plain=plain)
    environment.globals.update(anchor=anchor, marks=MARKS, answer_marks=ANSWER_MARKS, svg=Markup)
    return environment.get_template(TEMPLATE)
