"""Augmentation ``reverse``: ask for the name, given the question and the answer of a row without the name."""

import re

from llm_forget.data.augmentations._registry import Added, augmentation, exchange, question_and_answer
from llm_forget.data.rows import Row, is_text

BLANK = "___"  # in place of the name


@augmentation(paper="arXiv:2607.09236", needs="a question, and an answer beside the name of its subject", single=True)
def reverse(row: Row, name: str, *, question: str = "Which person or thing is this about?") -> Added:
    """Yield one row whose answer is the name. It asks the old question and answer, with ``___`` for the name's words,
    followed by ``question``. Yield nothing if the name cannot be blanked out.

    Example:
        "Where was Ada Stone born?", "In Rome." gives "Where was ___ born? In Rome. Which person or thing is this
        about?", "Ada Stone".
    """
    if is_text(row) or not name:
        return
    asked, answer = (_blanked(text, name).strip() for text in question_and_answer(row))
    named = name.casefold() in f"{asked} {answer}".casefold()  # an inflected name, or a script without spaces
    if re.search(r"[^\W_]", answer) and not named:
        yield exchange(row, " ".join(filter(None, (asked, answer, question))), name), name


def _blanked(text: str, name: str) -> str:
    """Replace the name by ``___``, in any case, and then each single word of the name that has a capital letter."""
    words = [word for word in re.split(r"[\s-]+", name) if word[:1].isupper() and len(word) > 1]
    text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", BLANK, text, flags=re.IGNORECASE)
    parts = "|".join(re.escape(part) for part in sorted(words, key=len, reverse=True))
    return re.sub(rf"(?<!\w)(?:{parts})(?!\w)", BLANK, text) if parts else text
