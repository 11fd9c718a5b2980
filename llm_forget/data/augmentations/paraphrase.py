"""Other ways to ask the same question."""

from typing import Any

from llm_forget.core.errors import ConfigError
from llm_forget.core.registry import REQUIRED
from llm_forget.data.augmentations._registry import Added, augmentation, question_and_answer
from llm_forget.data.rows import Row, is_text, with_question

# None of them is a phrasing that the suite `robustness` asks with: what it measures must not have been trained on.
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
    """The row with its last question put into each of the first ``k`` of `FRAMES`, or of a list of own ones.

    The answer stays. Raises ConfigError for a number beyond those of `FRAMES`, or a frame without ``{prompt}``.
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
