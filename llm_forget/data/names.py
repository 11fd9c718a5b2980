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
# First and last names that are also ordinary words: at the start of a sentence, their capital letter shows nothing.
_ORDINARY_WORDS = frozenset(
    (
        "Art", "Ash", "Baker", "Bell", "Bill", "Bird", "Bishop", "Black", "Bloom", "Bond", "Booth", "Brook",
        "Brooks", "Brown", "Bush", "Butler", "Carpenter", "Carter", "Chance", "Chase", "Church", "Clay", "Cliff",
        "Cole", "Cook", "Cooper", "Cross", "Crystal", "Daisy", "Dale", "Dawn", "Day", "Dean", "Destiny", "Drew",
        "Duke", "Earl", "Early", "Faith", "Farmer", "Field", "Fields", "Fish", "Fisher", "Ford", "Forest", "Fox",
        "Frank", "Frost", "Gardener", "Gene", "Ginger", "Glass", "Gold", "Good", "Grace", "Grant", "Gray", "Green",
        "Grey", "Hand", "Harmony", "Hazel", "Heather", "Hill", "Hills", "Holly", "Honey", "Hope", "House", "Hunt",
        "Hunter", "Iris", "Ivy", "Jack", "Jasmine", "Jewel", "Joy", "Judge", "King", "Knight", "Lance", "Lane",
        "Law", "Lily", "Little", "Long", "Love", "Major", "Marina", "Mark", "Mason", "Max", "Melody", "Mercy",
        "Miller", "Mills", "Moon", "Moss", "Nick", "Noble", "North", "Olive", "Opal", "Page", "Park", "Parks",
        "Pat", "Patience", "Pearl", "Penny", "Pepper", "Piper", "Poppy", "Porter", "Potter", "Power", "Powers",
        "Price", "Prince", "Ray", "Reed", "Rich", "Ring", "River", "Rivers", "Rob", "Robin", "Rock", "Rose",
        "Rosemary", "Ruby", "Rusty", "Sage", "Sandy", "Savage", "Shepherd", "Short", "Singer", "Sky", "Small",
        "Smith", "Snow", "Spring", "Stone", "Story", "Strong", "Sue", "Summer", "Summers", "Sunny", "Swan",
        "Taylor", "Trinity", "Turner", "Violet", "Wade", "Walker", "Wall", "Ward", "Waters", "Weaver", "Wells",
        "West", "White", "Wild", "Will", "Willow", "Winter", "Winters", "Wise", "Wolf", "Wood", "Woods", "Worth",
        "Young",
    )
)  # fmt: skip
# Names that are also months, days or places, which have a capital letter everywhere.
_PROPER_WORDS = frozenset(
    (
        "Adelaide", "Alexandria", "April", "Asia", "August", "Austin", "Avalon", "Berlin", "Bethany", "Boston",
        "Britain", "Brooklyn", "Carolina", "Charlotte", "Chelsea", "China", "Christmas", "Cleveland", "Dakota",
        "Dallas", "Denver", "Easter", "England", "English", "Florence", "Florida", "France", "French", "Friday",
        "Geneva", "Georgia", "German", "Germany", "Holland", "Houston", "India", "Ireland", "Irish", "Israel",
        "Italia", "Jackson", "January", "Jersey", "Jordan", "June", "Kent", "Kenya", "Lincoln", "London",
        "Lorraine", "Madison", "May", "Milan", "Monday", "Montana", "Nevada", "Orlando", "Paris", "Phoenix",
        "Roman", "Rome", "Saturday", "Savannah", "Scotland", "Sienna", "Spain", "Sunday", "Sydney", "Thursday",
        "Troy", "Tuesday", "Tyrone", "Verona", "Victoria", "Vienna", "Virginia", "Wales", "Washington", "Wednesday",
        "Welsh", "York",
    )
)  # fmt: skip
_SENTENCE_START = re.compile(r"(?:^|[.!?:…\n])[^\w.!?:…\n]*\Z")
_NUMBER_FOLLOWS = re.compile(r" \d")
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
    *Ada Stone*, neither *Dan Stone* nor *Stone Street* changes. Nor is a word that may be no name (`_is_ordinary`).
    """
    cased = name.lower() != name.upper()  # scripts without capitals need no spaces between words
    whole = re.compile(rf"(?<!\w){re.escape(name)}(?!\w)" if cased else re.escape(name))
    words, other_words = name.split(), other.split()
    pairs = dict(zip(words, other_words, strict=True)) if parts and 1 < len(words) == len(other_words) else {}

    def exchanged(span: re.Match[str]) -> str:
        *before, last = span[0].split(" ")
        word, ending = _POSSESSIVE.fullmatch(last).groups()  # type: ignore[union-attr]  # matches every word
        if word in pairs and _FIRST_WORDS.issuperset(before) and not _is_ordinary(word, span, bool(before)):
            return " ".join([*before, pairs[word] + ending])
        return span[0]

    def replaced(text: str) -> str:
        text = whole.sub(lambda _: other, text)
        return _SPAN.sub(exchanged, text) if pairs else text

    return replaced


def _is_ordinary(word: str, span: re.Match[str], follows_another: bool) -> bool:
    """Return whether a capitalised word may be no name: *in May*, or *Rose* at the start of a sentence, or *Page 5*."""
    if word not in _ORDINARY_WORDS:
        return word in _PROPER_WORDS
    starts_sentence = not follows_another and _SENTENCE_START.search(span.string[: span.start()])
    return bool(starts_sentence or _NUMBER_FOLLOWS.match(span.string, span.end()))


def with_texts(row: Row, changed: Callable[[str], str]) -> dict[str, Any]:
    """Return the row with the function ``changed`` applied to each string that becomes tokens."""

    def replaced(value: Any) -> Any:
        if isinstance(value, str):
            return changed(value)
        if isinstance(value, Mapping):
            return {key: replaced(part) if key == "content" else part for key, part in value.items()}
        return [replaced(part) for part in value] if isinstance(value, Sequence) else value

    return {key: replaced(value) if key in TEXT_COLUMNS else value for key, value in row.items()}
