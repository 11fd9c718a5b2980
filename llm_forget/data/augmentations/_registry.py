"""Registry of augmentations, and functions that read or replace the question and answer of a row."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from llm_forget.core.errors import ConfigError
from llm_forget.core.registry import REQUIRED, Entry, Registry
from llm_forget.data.rows import Row, conversation

Added = Iterator[tuple[dict[str, Any], str]]  # for each new row: the columns to tokenise, and the name in their text
Function = TypeVar("Function", bound=Callable[..., Added])


@dataclass(frozen=True)
class Augmentation(Entry):
    """A registered augmentation: a generator function that yields the further rows for one row.

    Its inputs are the row and the name of the row's subject (empty if unknown). Its one keyword-only argument is the
    value of its key in the recipe. For each further row, it yields (columns to tokenise, name in their text). It yields
    nothing if the row lacks the data that ``needs_of_row`` describes.
    """

    single: bool = False  # True: yields at most one row, so that the id of this row needs no number
    needs_of_row: str = ""  # end of the sentence "a row needs ..."

    def arguments_of(self, value: Any) -> dict[str, Any]:
        """Return the keyword argument for a recipe's value; True selects the default. Raise ConfigError if wrong."""
        (argument, default) = next(iter(self.defaults.items()))
        if value is True and default is REQUIRED:
            raise ConfigError(f"augmentation '{self.name}' needs a value ({argument}), as in docs/augmentation.md")
        return self.arguments({} if value is True else {argument: value})


AUGMENTATIONS: Registry[Augmentation] = Registry("augmentation", Augmentation)


def augmentation(*, paper: str, needs: str, single: bool = False) -> Callable[[Function], Function]:
    """Return a decorator that registers an augmentation. ``needs`` is the end of the sentence "a row needs ..."."""
    return AUGMENTATIONS.register_with(paper=paper, needs_of_row=needs, single=single)


def question_and_answer(row: Row) -> tuple[str, str]:
    """Return (last question, last answer) of a row that is not running text; a missing one is an empty string.

    A user message inside a completion does not count as a question.
    """
    messages, prompts = conversation(row)
    question, answer = (
        next((m["content"] for m in reversed(part) if m["role"] == role), "")
        for role, part in (("user", messages[: prompts or None]), ("assistant", messages))
    )
    return question, answer


def exchange(row: Row, question: str, answer: str) -> dict[str, Any]:
    """Return columns with this question and answer in the form of ``row``. Only the row's system messages are kept."""
    messages, _ = conversation(row)
    turns = [*(m for m in messages if m["role"] == "system"), {"role": "user", "content": question}]
    if row.get("messages") is not None:
        return {"messages": [*turns, {"role": "assistant", "content": answer}]}
    return {"prompt": turns if len(turns) > 1 else question, "completion": answer}
