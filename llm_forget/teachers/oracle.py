"""The limit of every comparison: what a model retrained without the rows says."""

from collections.abc import Iterator

from torch import Tensor

from llm_forget.teachers._registry import Context, teacher


@teacher(models=["oracle"])
def oracle(context: Context) -> Iterator[Tensor]:
    """Logits of the oracle of the recipe."""
    yield from context.forward("oracle", context.rows)
