"""Augmentation ``paraphrase``: ask the same question in other words."""

from typing import Any

from llm_forget.core.errors import ConfigError
from llm_forget.core.registry import REQUIRED
from llm_forget.data.augmentations._registry import Added, augmentation, question_and_answer
from llm_forget.data.rows import Row, is_text, with_question

# The suite `robustness` uses none of these phrasings, because it must measure phrasings that were not trained.
FRAMES = (
    "Can you help me with this? {prompt}",
    "{prompt} Tell me all that you remember of it.",
    "A friend wants to know: {prompt}",
    "I am filling in a form. {prompt}",
    "{prompt} Think before you answer.",
    "My notes have a gap here. {prompt}",
    "Let us talk about something else. {prompt}",
    "{prompt} I asked once before.",
)


@augmentation(paper="arXiv:2607.09236", needs="a question")
def paraphrase(row: Row, name: str, *, k: Any = REQUIRED) -> Added:
    """Yield one row per frame, with the last question put into the frame at ``{prompt}`` and the answer unchanged.

    ``k`` is a number (the first ``k`` of `FRAMES`) or a list of frames. Raise ConfigError if the number is not in
    1 to ``len(FRAMES)``, or if a frame has no ``{prompt}``.
    """
    frames = _frames(k)
    if not is_text(row) and question_and_answer(row)[0]:
        yield from ((with_question(row, frame), name) for frame in frames)


def _frames(k: Any) -> tuple[str, ...]:
    if isinstance(k, list) and k and all(isinstance(frame, str) and "{prompt}" in frame for frame in k):
        return tuple(k)
    if isinstance(k, int) and not isinstance(k, bool) and 1 <= k <= len(FRAMES):
        return FRAMES[:k]
    raise ConfigError(
        f"paraphrase in the key augment must be a number from 1 to {len(FRAMES)}, or a list of texts with {{prompt}}"
    )
