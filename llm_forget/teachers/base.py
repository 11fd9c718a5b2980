"""A cheap oracle for a fine-tuned model: its base model with an adapter trained on a sample of the retain rows."""

from collections.abc import Iterator

from torch import Tensor

from llm_forget.teachers._registry import Context, teacher


@teacher(models=["aux_without"])
def base(context: Context) -> Iterator[Tensor]:
    """Logits of the base model after fine-tuning on retain rows only."""
    yield from context.forward("aux_without", context.rows)
