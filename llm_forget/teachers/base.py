"""Teacher ``base``, a cheap oracle for a fine-tuned model: its base model, trained on a sample of the retain rows."""

from collections.abc import Iterator

from torch import Tensor

from llm_forget.teachers._registry import Context, teacher


@teacher(models=["aux_without"])
def base(context: Context) -> Iterator[Tensor]:
    """Yield, for each row, the logits of the base model after an adapter was trained on retain rows only."""
    yield from context.forward("aux_without", context.rows)
