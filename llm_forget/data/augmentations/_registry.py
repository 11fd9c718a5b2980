"""Registry of augmentations, and what they need of a row."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from llm_forget.core.errors import ConfigError
from llm_forget.core.registry import REQUIRED, Entry, Registry
from llm_forget.data.rows import Row, conversation

Added = Iterator[tuple[dict[str, Any], str]]  # columns that become tokens, and the name that they use
Function = TypeVar("Function", bound=Callable[..., Added])


@dataclass(frozen=True)
class Augmentation(Entry):
    """A generator of the rows that it makes of one row: of each, the columns that become tokens, and the name it uses.

    Its inputs are the row and the name of the row's subject, empty if none was found. Its one keyword-only argument is
    the value of its key in the recipe. It yields nothing for a row that does not have what it needs.
    """

    single: bool = False  # whether it makes at most one row, whose id then has no number
    needs_of_row: str = ""  # what a row must have, as the end of the sentence "a row needs ..."

    def arguments_of(self, value: Any) -> dict[str, Any]:
        """Return the argument that a recipe's value gives; true stands for the default. Raises ConfigError."""
        (argument, default) = next(iter(self.defaults.items()))
        if value is True and default is REQUIRED:
            raise ConfigError(f"augmentation '{self.name}' needs a value ({argument}), as in docs/augmentation.md")
        return self.arguments({} if value is True else {argument: value})


AUGMENTATIONS: Registry[Augmentation] = Registry("augmentation", Augmentation)


def augmentation(*, paper: str, needs: str, single: bool = False) -> Callable[[Function], Function]:
    """Register an augmentation under the name of its function; ``needs`` ends the sentence "a row needs ..."."""
    return AUGMENTATIONS.register_with(paper=paper, needs_of_row=needs, single=single)


def question_and_answer(row: Row) -> tuple[str, str]:
    """Return the last question and the last answer of a row that is not running text; empty where it has none."""
    messages = conversation(row)[0]
    question, answer = (
        next((m["content"] for m in reversed(messages) if m["role"] == role), "") for role in ("user", "assistant")
    )
    return question, answer


def exchange(row: Row, question: str, answer: str) -> dict[str, Any]:
    """Return the columns of a row that becomes this question and answer; system messages stay, earlier turns do not."""
    messages, _ = conversation(row)
    turns = [*(m for m in messages if m["role"] == "system"), {"role": "user", "content": question}]
    if row.get("messages") is not None:
        return {"messages": [*turns, {"role": "assistant", "content": answer}]}
    return {"prompt": turns if len(turns) > 1 else question, "completion": answer}
