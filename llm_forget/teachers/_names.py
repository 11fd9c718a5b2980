"""Names of the subjects of rows, and invented names to put in their place."""

import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from llm_forget.core.errors import DataError
from llm_forget.data.rows import Row

# One or more capitalised words: Gina Dominguez, Jean-Luc O'Neil.
_SPAN = re.compile(r"\b[A-ZÀ-ÖØ-Þ][\w'’-]*(?: [A-ZÀ-ÖØ-Þ][\w'’-]*)*")
_FIRST_WORDS = frozenset(
    (
        "What", "Where", "When", "Who", "Whom", "Whose", "Which", "Why", "How", "Is", "Are", "Was", "Were", "Do",
        "Does", "Did", "Has", "Have", "Had", "Can", "Could", "Will", "Would", "Should", "Tell", "Name", "Describe",
        "Explain", "List", "Give", "In", "On", "At", "The", "A", "An",
    )
)  # fmt: skip
_TEXT_COLUMNS = ("prompt", "completion", "messages", "text")
DRAWS = 20_000  # combinations of words tried for one borrowed name


def names_of(rows: Sequence[Row], column: str, split: str = "forget") -> list[str]:
    """The name of the subject of each row: from ``column``, or the capitalised words that a subject's questions share.

    Raises:
        DataError: a row has no name; names its id.
    """
    shared = _shared_spans([row for row in rows if not row.get(column)])
    names = [str(row.get(column) or shared.get(str(row.get("subject", row["id"])), "")) for row in rows]
    for row, name in zip(rows, names, strict=True):
        if not name or not any(name in text for text in texts_of(row)):
            raise DataError(
                f"no name was found in {split} row '{row['id']}', which teacher 'stranger' replaces; add a column "
                f"'{column}' with the name that the row uses, or choose another teacher"
            )
    return names


def _shared_spans(rows: Sequence[Row]) -> dict[str, str]:
    """By subject, the longest run of capitalised words that all its questions have in common."""
    shared: dict[str, set[str]] = {}
    for row in rows:
        spans = {part for span in _SPAN.findall(_question(row)) for part in _parts(span)}
        subject = str(row.get("subject", row["id"]))
        shared[subject] = shared[subject] & spans if subject in shared else spans
    return {subject: max(spans, key=lambda span: (len(span), span)) for subject, spans in shared.items() if spans}


def capitalised_words(text: str) -> set[str]:
    """The capitalised words of a text, without the first words of questions; each part of Jean-Luc is a word."""
    words = set(re.findall(r"\w+", text)) - _FIRST_WORDS
    return {word for word in words if word[0].isupper()}


def _parts(span: str) -> Iterable[str]:
    """All runs of words of a span that do not begin with the first word of a question."""
    words = span.split(" ")
    starts = [i for i in range(len(words)) if words[i] not in _FIRST_WORDS]
    return (" ".join(words[i:j]) for i in starts for j in range(i + 1, len(words) + 1))


def _question(row: Row) -> str:
    prompt = row.get("prompt")
    return prompt if isinstance(prompt, str) else " ".join(texts_of(row))


def borrowed_names(
    names: Sequence[str], others: Iterable[str], tokens: Callable[[str], list[int]], count: int, seed: int
) -> dict[str, list[str]]:
    """By name, ``count`` invented names: words of other names combined, with the same number of tokens.

    Raises:
        DataError: the other names have no words of such lengths.
    """
    rng = random.Random(f"borrowed-{seed}")
    others = sorted(set(others))
    used = {*others, *names}
    firsts, lasts = (sorted({name.split()[place] for name in others}) for place in (0, -1))
    if not others:
        raise DataError(
            "teacher 'stranger' needs retain rows, whose names it borrows; set retain, or use teacher 'self'"
        )
    borrowed: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):
        length, candidates = len(tokens(name)), []
        for _ in range(DRAWS):
            candidate = " ".join([rng.choice(firsts), *([rng.choice(lasts)] if " " in name else [])])
            if candidate not in used and len(tokens(candidate)) == length:
                candidates.append(candidate)
                used.add(candidate)
                if len(candidates) == count:
                    break
        if len(candidates) < count:
            raise DataError(
                f"teacher 'stranger' finds no {count} names of {length} tokens among the retain rows; add retain rows "
                "with such names, or choose another teacher"
            )
        borrowed[name] = candidates
    return borrowed


def texts_of(row: Row) -> list[str]:
    """Every string of the columns that become tokens."""
    return [text for column in _TEXT_COLUMNS for text in _strings(row.get(column))]


def _strings(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _strings(value.get("content"))
    elif isinstance(value, Sequence):
        for part in value:
            yield from _strings(part)


def renamed(row: Row, name: str, other: str) -> dict[str, Any]:
    """The row with another name in every column that becomes tokens."""

    def replaced(value: Any) -> Any:
        if isinstance(value, str):
            return value.replace(name, other)
        if isinstance(value, Mapping):
            return {key: replaced(part) if key == "content" else part for key, part in value.items()}
        return [replaced(part) for part in value] if isinstance(value, Sequence) else value

    return {key: replaced(value) if key in _TEXT_COLUMNS else value for key, value in row.items()}
