"""Functions that read only target positions. Values at masked positions, even NaN, affect no result or gradient."""

from torch import Tensor

from llm_forget.core.errors import ConfigError
from llm_forget.logprobs.logprobs import Logprobs


def at_targets(logprobs: Logprobs, kind: str) -> Tensor:
    """Return ``logits`` ``[N, V]`` or ``hidden`` states ``[N, H]`` at the N target positions, float32.

    Raise ConfigError if the forward pass did not keep these outputs.
    """
    tensor: Tensor | None = getattr(logprobs, kind)
    if tensor is None:
        need = {"hidden": "hidden_states"}.get(kind, kind)
        raise ConfigError(f"these log-probabilities have no {kind}; declare needs={{'{need}'}} on the objective")
    places = logprobs.mask.flatten().nonzero().squeeze(-1)  # [N]; indexing by a mask has a slow backward pass
    return tensor.flatten(0, 1).index_select(0, places).float()


def back(flat: Tensor, mask: Tensor) -> Tensor:
    """Return ``[B, T]`` with the values of ``flat`` ``[N]`` at the N True positions of ``mask`` and zeros elsewhere."""
    return flat.new_zeros(mask.shape).masked_scatter(mask, flat)


def token_values(logprobs: Logprobs) -> Tensor:
    """Return the log-probabilities of the gold tokens, ``[B, T]``, nats; 0 at masked positions."""
    return logprobs.values.masked_fill(~logprobs.mask, 0.0)


def sequence_sums(logprobs: Logprobs) -> Tensor:
    """Return the log-probability of each whole target sequence, ``[B]``, nats."""
    return token_values(logprobs).sum(-1)  # [B]


def filled_rows(logprobs: Logprobs, values: Tensor) -> Tensor:
    """Return ``values`` ``[B]`` with zeros for rows that have no targets, such as padding rows of the last batch."""
    return values.masked_fill(~logprobs.mask.any(-1), 0.0)
