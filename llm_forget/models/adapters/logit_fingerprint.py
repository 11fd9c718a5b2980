"""Measure how much an adapter changes the logits of fixed prompts, when it is saved and when it is loaded.

If a library attaches the adapter incorrectly, the model answers as before unlearning, although all file digests match.
A comparison of the two measurements detects this.
"""

import hashlib
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llm_forget.core.digests import json_digest
from llm_forget.core.errors import AdapterRefused
from llm_forget.logprobs.logprobs import evaluation_mode
from llm_forget.models.adapters.lora import quantization_of, reference_mode

logger = logging.getLogger("llm_forget")
PROMPTS, LENGTH = 2, 12  # one forward pass of 24 tokens with the adapter and one without
SAMPLES = 64  # logits whose differences are recorded one by one
# Mean change of the logits that other kernels and devices may cause, as a share of the largest logit, by dtype. It
# allows for TF32 in float32, and for several rounding steps in 16 bit. 4 and 8 bit count as bfloat16.
NOISE = {"float32": 1e-3, "float16": 2.0**-9, "bfloat16": 2.0**-6}


def _hashed_number(below: int, *labels: object) -> int:
    """Return a pseudo-random integer in [0, below). It is the same on every machine and with all library versions."""
    return int.from_bytes(hashlib.sha256(" ".join(map(str, ("effect probe", *labels))).encode()).digest()[:8]) % below


def probe_ids(vocabulary: int) -> list[list[int]]:
    """Return prompts of pseudo-random token ids, ``[PROMPTS, LENGTH]``. They depend only on the vocabulary size."""
    return [[_hashed_number(vocabulary, row, place) for place in range(LENGTH)] for row in range(PROMPTS)]


@torch.no_grad()
def probe(model: Any) -> Tensor | None:
    """Return the logits of the fixed prompts ``[PROMPTS, LENGTH, V]``, float32 on the CPU; None for sharded weights."""
    if not _holds_whole_weights(model):
        return None
    embedding = model.get_input_embeddings().weight
    ids = torch.tensor(probe_ids(model.config.get_text_config().vocab_size), device=embedding.device)
    # Use the original forward: accelerate's wrapper computes in half precision, which loading does not.
    forward = getattr(model, "_original_forward", model)
    with evaluation_mode(model), torch.autocast(embedding.device.type, enabled=False):
        return forward(input_ids=ids, use_cache=False).logits.float().cpu()


def effect_of(model: Any) -> dict[str, Any] | None:
    """Return the effect of adapter "unlearn" on the logits, as its manifest stores it; None for sharded weights."""
    with reference_mode(model):
        before = probe(model)
    after = probe(model)
    return None if before is None or after is None else describe(model, before, after)


def describe(model: Any, before: Tensor, after: Tensor) -> dict[str, Any]:
    """Compare the logits ``[N, S, V]`` without and with an adapter, and return the effect for the manifest.

    ``max_abs`` is the largest difference, ``mean_kl`` is KL(before, after) in nats per position, and ``samples`` are
    `SAMPLES` single differences. They are None if a logit is not finite, which means that training diverged.
    """
    ids = probe_ids(model.config.get_text_config().vocab_size)
    effect: dict[str, Any] = {
        "prompts": json_digest(ids),
        **dict.fromkeys(("max_abs", "mean_kl", "largest_logit", "samples")),
        "dtype": str(model.get_input_embeddings().weight.dtype).removeprefix("torch."),
        "quantization": quantization_of(model),
    }
    if not (torch.isfinite(before).all() and torch.isfinite(after).all()):
        return effect
    difference, old, new = (after - before).flatten(), before.log_softmax(-1), after.log_softmax(-1)
    places = [_hashed_number(difference.numel(), "sample", number) for number in range(SAMPLES)]
    return effect | {
        "max_abs": float(difference.abs().max()),
        "mean_kl": max(0.0, float((old.exp() * (old - new)).sum(-1).mean())),
        "largest_logit": float(before.abs().max()),
        "samples": [float(f"{value:.6g}") for value in difference[places].tolist()],
    }


def is_effect(content: dict[str, Any]) -> bool:
    """Return whether an `Effect` is valid: all numbers are present, or all are None because logits were not finite."""
    numbers, samples = [content[key] for key in ("max_abs", "mean_kl", "largest_logit")], content["samples"]
    complete = len(samples) == SAMPLES and None not in numbers if samples is not None else numbers == [None] * 3
    return complete and content["dtype"] in NOISE


def refuse_without_effect(measured: dict[str, Any] | None, recorded: dict[str, Any] | None, folder: Path) -> None:
    """Raise AdapterRefused if the measured effect is zero or differs from the recorded one. None: not measured."""
    if measured is None:
        return
    if measured["max_abs"] == 0:
        raise AdapterRefused(
            f"adapter '{folder}' changes no logit of the probe prompts: the model with it equals its base, and "
            "has forgotten nothing; train again, with more steps or a higher learning_rate"
        )
    if recorded is None or recorded["prompts"] != measured["prompts"]:
        return
    if recorded["quantization"] != measured["quantization"]:
        return  # the effect depends on the base's precision; `load_base` warns if it differs
    if recorded["max_abs"] is None or measured["max_abs"] is None:
        if recorded["max_abs"] is not measured["max_abs"]:
            raise AdapterRefused(f"the logits of adapter '{folder}' are not finite, or were not when it was saved")
        return
    apart = _mean_abs([a - b for a, b in zip(measured["samples"], recorded["samples"], strict=True)])
    if not apart <= tolerance(recorded, measured):
        raise AdapterRefused(
            f"adapter '{folder}' has another effect than when it was saved: on the probe prompts it moves logits by up "
            f"to {measured['max_abs']:.4g}, recorded {recorded['max_abs']:.4g}, and in the mean {apart:.2g} apart "
            f"(tolerance {tolerance(recorded, measured):.2g}); the base, the way of loading or a library is another"
        )


def warn_without_effect(effect: Mapping[str, Any] | None, folder: Path) -> None:
    """Log a warning if the effect of a trained adapter is zero (`load_adapter` will refuse it) or not finite."""
    if effect is None:
        return
    if effect["max_abs"] == 0:
        logger.warning(
            "adapter '%s' changes no logit of the probe prompts, so nothing was forgotten, and loading it will be "
            "refused; train longer or with a higher learning_rate", folder,
        )  # fmt: skip
    elif effect["max_abs"] is None:
        logger.warning(
            "with adapter '%s' the logits of the probe prompts are not finite: training diverged; lower learning_rate",
            folder,
        )


def tolerance(recorded: dict[str, Any], measured: dict[str, Any]) -> float:
    """Return the largest mean absolute difference that is allowed between recorded and measured samples, in logits."""
    quantised = recorded["quantization"] is not None
    share = max(NOISE["bfloat16" if quantised else effect["dtype"]] for effect in (recorded, measured))
    return 2 * share * max(1.0, recorded["largest_logit"]) + 0.05 * _mean_abs(recorded["samples"])


def _mean_abs(values: list[float]) -> float:
    return sum(map(abs, values)) / len(values)


def _holds_whole_weights(model: nn.Module) -> bool:
    """Return whether this process has all weights: no FSDP or ZeRO-3 shards, meta tensors or empty parameters."""
    from torch.distributed.tensor import DTensor

    sharded = os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("1", "true")
    return not sharded and not any(
        parameter.is_meta or parameter.numel() == 0 or isinstance(parameter, DTensor)
        for parameter in model.parameters()
    )
