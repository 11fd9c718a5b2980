"""Find the names of the subjects of rows, and replace them by other names."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from llm_forget.data.rows import Row

# One or more capitalised words: Gina Dominguez, Jean-Luc O'Neil.
_SPAN = re.compile(r"\b[A-ZÀ-ÖØ-Þ][\w'’-]*(?: [A-ZÀ-ÖØ-Þ][\w'’-]*)*")
_POSSESSIVE = re.compile(r"(.*?)((?:['’]s?)?)")
_FIRST_WORDS = frozenset(  # words that are capitalised because they begin a question, not because they are names
    (
        "What", "Where", "When", "Who", "Whom", "Whose", "Which", "Why", "How", "Is", "Are", "Was", "Were", "Do",
        "Does", "Did", "Has", "Have", "Had", "Can", "Could", "Will", "Would", "Should", "Tell", "Name", "Describe",
        "Explain", "List", "Give", "In", "On", "At", "The", "A", "An",
    )
)  # fmt: skip
TEXT_COLUMNS = ("prompt", "completion", "messages", "text")


def find_names(rows: Sequence[Row], column: str, *, parts: bool = False) -> list[str]:
    """Return the name of the subject of each row, or an empty string if the row's text does not contain the name.

    The name is the value of ``column``, or the longest run of capitalised words that all questions about the subject
    share. With ``parts``, a row that contains only the first or last name by itself also counts (see `replacement`).
    """
    shared = _shared_spans([row for row in rows if not row.get(column)])
    names = [str(row.get(column) or shared.get(_subject(row), "")) for row in rows]
    return [name if name and _is_in(row, name, parts) else "" for row, name in zip(rows, names, strict=True)]


def _is_in(row: Row, name: str, parts: bool) -> bool:
    return renamed(row, name, "? ?" if " " in name else "?", parts=parts) != row


def _shared_spans(rows: Sequence[Row]) -> dict[str, str]:
    """Return, for each subject, the longest run of capitalised words that all questions about it contain."""
    shared: dict[str, set[str]] = {}
    for row in rows:
        spans = {part for span in _SPAN.findall(_question(row)) for part in _parts(span)}
        subject = _subject(row)
        shared[subject] = shared[subject] & spans if subject in shared else spans
    return {subject: max(spans, key=lambda span: (len(span), span)) for subject, spans in shared.items() if spans}


def capitalised_words(text: str) -> set[str]:
    """Return all capitalised words of a text, except words in `_FIRST_WORDS`. *Jean-Luc* counts as two words."""
    words = set(re.findall(r"\w+", text)) - _FIRST_WORDS
    return {word for word in words if word[0].isupper()}


def _subject(row: Row) -> str:
    return str(row.get("subject") or row["id"])  # in a table, rows without a subject have an empty cell


def _parts(span: str) -> Iterable[str]:
    """Return all runs of consecutive words of a span whose first word is not in `_FIRST_WORDS`."""
    words = span.split(" ")
    starts = [i for i in range(len(words)) if words[i] not in _FIRST_WORDS]
    return (" ".join(words[i:j]) for i in starts for j in range(i + 1, len(words) + 1))


def _question(row: Row) -> str:
    prompt = row.get("prompt")
    return prompt if isinstance(prompt, str) else " ".join(texts_of(row))


def texts_of(row: Row) -> list[str]:
    """Return all strings of a row that become tokens, that is, those in `TEXT_COLUMNS`."""
    return [text for column in TEXT_COLUMNS for text in _strings(row.get(column))]


def _strings(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _strings(value.get("content"))
    elif isinstance(value, Sequence):
        for part in value:
            yield from _strings(part)


def renamed(row: Row, name: str, other: str, *, parts: bool = True) -> dict[str, Any]:
    """Return the row with ``name`` replaced by ``other`` in all texts that become tokens (see `replacement`)."""
    return with_texts(row, replacement(name, other, parts=parts))


def replacement(name: str, other: str, *, parts: bool = True) -> Callable[[str], str]:
    """Return a function that replaces ``name`` by ``other`` in a text, where ``name`` occurs as whole words.

    With ``parts``, a single word of the name is also replaced, by the word of ``other`` at the same position, if both
    names have the same number of words (at least two). A word in a longer capitalised phrase is not replaced: for
    *Ada Stone*, neither *Dan Stone* nor *Stone Street* changes.
    """
    cased = name.lower() != name.upper()  # scripts without capitals need no spaces between words
    whole = re.compile(rf"(?<!\w){re.escape(name)}(?!\w)" if cased else re.escape(name))
    words, other_words = name.split(), other.split()
    pairs = dict(zip(words, other_words, strict=True)) if parts and 1 < len(words) == len(other_words) else {}

    def exchanged(span: re.Match[str]) -> str:
        *before, last = span[0].split(" ")
        word, ending = _POSSESSIVE.fullmatch(last).groups()  # type: ignore[union-attr]  # matches every word
        if word in pairs and _FIRST_WORDS.issuperset(before):
            return " ".join([*before, pairs[word] + ending])
        return span[0]

    def replaced(text: str) -> str:
        text = whole.sub(lambda _: other, text)
        return _SPAN.sub(exchanged, text) if pairs else text

    return replaced


def with_texts(row: Row, changed: Callable[[str], str]) -> dict[str, Any]:
    """Return the row with the function ``changed`` applied to each string that becomes tokens."""

    def replaced(value: Any) -> Any:
        if isinstance(value, str):
            return changed(value)
        if isinstance(value, Mapping):
            return {key: replaced(part) if key == "content" else part for key, part in value.items()}
        return [replaced(part) for part in value] if isinstance(value, Sequence) else value

    return {key: replaced(value) if key in TEXT_COLUMNS else value for key, value in row.items()}
