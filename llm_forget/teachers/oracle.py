"""Teacher ``oracle``: a model retrained without the forget rows, the upper limit in comparisons of teachers."""

from collections.abc import Iterator

from torch import Tensor

from llm_forget.teachers._registry import Context, teacher


@teacher(models=["oracle"])
def oracle(context: Context) -> Iterator[Tensor]:
    """Yield, for each row, the logits of the model that the recipe's key ``oracle`` names."""
    yield from context.forward("oracle", context.rows)
