"""Attention over packed rows, with SDPA or FlashAttention. Each row attends only to itself.

For SDPA, the packed rows are padded on the right again before attention, so causal attention needs no mask.
"""

from typing import Any

import torch
from torch import Tensor, nn

from llm_forget.logprobs.packing import is_layout, repacked, unpacked

PREFIX = "by_row_"
FLASH = ("flash_attention_2", "flash_attention_3")


def attend_by_row(model: Any) -> bool:
    """Make a model accept a `layout` of packed rows as its attention mask. Return whether the model supports this.

    Other masks work as before. If the architecture has its own attention or a recurrent state, return False and change
    nothing. The change is permanent, because gradient checkpointing reruns layers in the backward pass.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    bare = model.get_base_model() if hasattr(model, "get_base_model") else model
    inner = bare.config._attn_implementation
    if isinstance(inner, str) and inner.startswith(PREFIX):
        return True
    if inner not in ("sdpa", *FLASH) or not bare._supports_attention_backend or bare._is_stateful:
        return False
    AttentionInterface.register(PREFIX + inner, _by_row(inner))
    AttentionMaskInterface.register(PREFIX + inner, ALL_MASK_ATTENTION_FUNCTIONS[inner])
    bare.config._attn_implementation = PREFIX + inner
    return True


def shares_beginnings(model: Any) -> bool:
    """Return whether packed rows may share the tokens of a common prefix. FlashAttention kernels do not support it."""
    return str(model.config._attn_implementation).removeprefix(PREFIX) not in FLASH


def _by_row(inner_name: str) -> Any:
    """Return an attention function for packed rows, which maps ``[1, heads, N, D]`` to ``[1, N, heads, D]``.

    It wraps the attention of transformers with the name ``inner_name``.
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    inner = ALL_ATTENTION_FUNCTIONS[inner_name]

    def attention(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
    ) -> tuple[Tensor, Any]:
        if not is_layout(attention_mask):
            return inner(module, query, key, value, attention_mask, **options)
        assert attention_mask is not None
        _refuse_unseen_window(module, options)
        if inner_name in FLASH:
            return inner(module, query, key, value, None, **options, **_boundaries(attention_mask))
        rows = [unpacked(part, attention_mask) for part in (query, key, value)]
        window = _window_mask(rows[0].shape[2], options.get("sliding_window"), query.device)
        out, weights = inner(module, *rows, window, **options)
        return repacked(out, attention_mask, query.shape[2]), weights

    return attention


def _refuse_unseen_window(module: nn.Module, options: dict[str, Any]) -> None:
    """Raise NotImplementedError if a model encodes its attention window or chunks only in the mask.

    Packed rows replace the mask, so such a window would be lost.
    """
    config: Any = module.config
    window = getattr(config, "sliding_window", None) and "sliding_window" not in options
    if window or getattr(config, "attention_chunk_size", None):
        raise NotImplementedError(f"{type(module).__name__} passes its attention window only in the mask")


def _boundaries(mask: Tensor) -> dict[str, Any]:
    """Return the row boundaries in a `layout` as arguments of FlashAttention's variable-length kernels."""
    lengths = (mask[0, 0] >= 0).sum(-1)  # [B]
    ends = nn.functional.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)  # [B + 1]
    longest = mask.shape[-1]
    return {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": longest, "max_length_k": longest}


def _window_mask(length: int, window: int | None, device: torch.device) -> Tensor | None:
    """Return the attention mask ``[1, 1, S, S]`` of a sliding window, or None if the window covers whole rows."""
    if window is None or length <= window:
        return None
    place = torch.arange(length, device=device)
    back = place[:, None] - place[None, :]
    return ((back >= 0) & (back < window))[None, None]
