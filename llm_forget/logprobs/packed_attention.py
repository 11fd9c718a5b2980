"""Attention over packed rows, with SDPA or FlashAttention: each row attends only to itself.

For SDPA, rows are padded on the right inside attention, so causal attention needs no mask.
"""

from typing import Any

import torch
from torch import Tensor, nn

from llm_forget.logprobs.packing import is_layout, repacked, unpacked

PREFIX = "by_row_"
FLASH = ("flash_attention_2", "flash_attention_3")


def attend_by_row(model: Any) -> bool:
    """Let a model accept the layout of `logprobs.packing` in place of an attention mask; other masks work unchanged.

    Returns False, without any change, if the architecture has its own attention or a recurrent state. The change is
    permanent, because gradient checkpointing reruns layers in the backward pass.
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
    """Return whether packed rows may share tokens: False for FlashAttention kernels."""
    return str(model.config._attn_implementation).removeprefix(PREFIX) not in FLASH


def _by_row(inner_name: str) -> Any:
    """Make the attention function for packed rows; it maps ``[1, heads, N, D]`` to ``[1, N, heads, D]``."""
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
    """Raise NotImplementedError if the model defines attention windows or chunks only in the attention mask."""
    config: Any = module.config
    window = getattr(config, "sliding_window", None) and "sliding_window" not in options
    if window or getattr(config, "attention_chunk_size", None):
        raise NotImplementedError(f"{type(module).__name__} passes its attention window only in the mask")


def _boundaries(mask: Tensor) -> dict[str, Any]:
    """Return the row boundaries as arguments of FlashAttention's variable-length kernels."""
    lengths = (mask[0, 0] >= 0).sum(-1)  # [B]
    ends = nn.functional.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)  # [B + 1]
    longest = mask.shape[-1]
    return {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": longest, "max_length_k": longest}


def _window_mask(length: int, window: int | None, device: torch.device) -> Tensor | None:
    """Return the mask ``[1, 1, S, S]`` of a sliding window shorter than the rows; None for plain causal attention."""
    if window is None or length <= window:
        return None
    place = torch.arange(length, device=device)
    back = place[:, None] - place[None, :]
    return ((back >= 0) & (back < window))[None, None]
