"""Combine adapters into one: their exact sum (concatenated matrices), or its best low-rank approximation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from llm_forget.core.errors import ModelError
from llm_forget.models.adapters.files import load_adapter, load_adapter_state, save_adapter
from llm_forget.models.adapters.logit_fingerprint import effect_of
from llm_forget.models.adapters.lora import ADAPTER, activate_all
from llm_forget.models.adapters.lora_config import MAX_RANK, read_config
from llm_forget.models.adapters.verification import verify_adapter
from llm_forget.models.digest import source_digest
from llm_forget.models.load import load_base
from llm_forget.models.merging import combinations
from llm_forget.models.merging.combinations import Part, Rule, layers, stacked
from llm_forget.models.merging.full_model import as_trained, compare, default_tolerance, probe_logits, random_probes

if TYPE_CHECKING:
    from trl import ModelConfig


def combine_adapters(
    base_args: ModelConfig, parts: Sequence[Part], folder: str | Path, rule: Rule, *, base_name: str | None = None
) -> dict[str, Any]:
    """Write the sum of several adapters as one adapter, and compare its logits with those of all adapters together.

    The base is loaded with the quantisation that the adapters' manifests state. ``rule`` must be `cat` or `svd`.

    Returns:
        The logit difference and its tolerance, `error_of_averaging`, `rank_error`, and two divergences in nats per
        position: ``mean_kl`` = KL(all adapters, combined adapter) and ``mean_kl_of_adapter`` = KL(all adapters, base).

    Raises:
        ModelError: ``rule`` is another one, the rank is too large, or (for `cat`) the difference is too large.
    """
    if rule.combination not in combinations.LOW_RANK:
        raise ModelError(f"'{rule.combination}' gives a full-rank change, which no adapter holds; write a full model")
    combinations.refuse_uncombinable(parts)
    args = as_trained(base_args, verify_adapter(parts[0].folder).get("quantization"))
    digest = source_digest(args.model_name_or_path, args.model_revision)
    base = load_base(args)
    probes = random_probes(base.config.get_text_config().vocab_size)
    reference = probe_logits(base, probes)
    model, names = combinations.load_parts(base, parts, digest)
    expected = probe_logits(model, probes)
    tensors, rank = side_by_side(model, names, rule)
    report: dict[str, Any] = {
        "combination": rule.combination, "rank": rank,
        "error_of_averaging": combinations.error_of_averaging(model, names),
        "rank_error": combinations.rank_error(model, names, rule.rank) if rule.rank is not None else 0.0,
    }  # fmt: skip
    config = _config(model, names, parts, rank)
    # In 8 bit, activations near a rounding boundary may round differently.
    limit = default_tolerance(expected, [base.dtype, torch.bfloat16 if args.load_in_8bit else base.dtype])
    del model, base
    _save(load_base(args), config, tensors, Path(folder), digest, base_name)
    combined = probe_logits(load_adapter(load_base(args), folder, base_digest=digest), probes)
    report |= {"tolerance": limit, **compare(expected, combined)}
    report["mean_kl_of_adapter"] = compare(expected, reference)["mean_kl"]
    if rule.combination == "cat" and not report["max_abs_logit_difference"] <= report["tolerance"]:
        raise ModelError(
            f"the combined adapter differs from its parts by up to {report['max_abs_logit_difference']:.3g} in its "
            f"logits, above the tolerance of {report['tolerance']:.3g}; nothing was written"
        )
    return report


def side_by_side(model: Any, names: Sequence[str], rule: Rule) -> tuple[dict[str, Tensor], int]:
    """Return (tensors of the combined adapter by PEFT's keys, rank). All modules are padded with zeros to this rank."""
    adapted = [(place, layer, both) for place, layer in layers(model) if (both := stacked(layer, names)) is not None]
    rank = min(max(up.shape[2] for *_, (up, _) in adapted), rule.rank or MAX_RANK + 1)
    if rank > MAX_RANK:
        raise ModelError(f"the ranks add up to more than {MAX_RANK}, the maximum; set a rank, or write a full model")
    tensors: dict[str, Tensor] = {}
    for place, layer, (up, down) in adapted:
        if rule.rank is not None:
            up, down, _, _ = combinations.truncated(up, down, rule.rank)
        missing = rank - up.shape[2]
        up, down = torch.nn.functional.pad(up, (0, missing)), torch.nn.functional.pad(down, (0, 0, 0, missing))
        up = up.permute(1, 2, 0).reshape(up.shape[1], -1).contiguous()  # [out, r E], as PEFT lays out experts
        down = down.reshape(-1, down.shape[-1]).contiguous()  # [E r, in]
        embedding = any(name in layer.lora_embedding_A for name in names)
        ends = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A.weight", "lora_B.weight")
        tensors |= {f"{place}.{ends[0]}": down, f"{place}.{ends[1]}": up}
    return tensors, rank


def _config(model: Any, names: Sequence[str], parts: Sequence[Part], rank: int) -> Any:
    """Return the configuration of the combined adapter, with scaling 1 and the target modules of all adapters."""
    from peft import LoraConfig

    configs = [read_config(part.folder) for part in parts]
    parameters = sorted({name for config in configs for name in config.target_parameters or ()})
    return LoraConfig(
        task_type="CAUSAL_LM", r=rank, lora_alpha=rank, lora_dropout=0.0, inference_mode=True,
        target_modules=_targets(model, names, configs), target_parameters=parameters or None,
        fan_in_fan_out=any(config.fan_in_fan_out for config in configs),
    )  # fmt: skip


def _targets(model: Any, names: Sequence[str], configs: Sequence[Any]) -> list[str]:
    """Return the target modules of all adapters, as full names if targets differ or only some layers are adapted."""
    first = configs[0]
    if all(set(config.target_modules or ()) == set(first.target_modules or ()) for config in configs) and not any(
        config.layers_to_transform or config.exclude_modules for config in configs
    ):
        return sorted(first.target_modules or ())
    adapted = (
        place.removeprefix("base_model.model.")
        for place, layer in layers(model)
        if not hasattr(layer, "parameter_name") and stacked(layer, names) is not None
    )
    return sorted(adapted)


def _save(model: Any, config: Any, tensors: dict[str, Tensor], folder: Path, digest: str, name: str | None) -> None:
    from peft import PeftModel, get_peft_model

    if isinstance(model, PeftModel):  # the base already has adapters
        model.add_adapter(ADAPTER, config)
        activate_all(model)
    else:
        model = get_peft_model(model, config, adapter_name=ADAPTER)
    load_adapter_state(model, tensors, origin="the combined adapter")
    model.eval()
    save_adapter(model, folder, base_digest=digest, base_name=name, effect=effect_of(model))
