"""Merge adapters into their base, write the full model, and verify its logits."""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from llm_forget.core import formats
from llm_forget.core.digests import file_digest
from llm_forget.core.errors import ModelError, library_errors
from llm_forget.core.formats.models import MergeReport
from llm_forget.models.adapters.files import disk_errors, load_adapter, replacing
from llm_forget.models.adapters.lora import ADAPTER, quantization_of
from llm_forget.models.adapters.safe_read import ADAPTER_WEIGHTS
from llm_forget.models.adapters.verification import verify_adapter
from llm_forget.models.digest import source_digest
from llm_forget.models.load import load_base, load_tokenizer
from llm_forget.models.merging import combinations
from llm_forget.models.merging.combinations import Part, Rule

if TYPE_CHECKING:
    from trl import ModelConfig

MERGE_REPORT = "merge.json"
# Default of the largest allowed difference, as a share of the largest logit. In float32, merging only reorders sums
# (3e-6 measured with 135M parameters). In 16 bit, merged weights are rounded again, so 16 rounding steps (2^-8 or 2^-11
# each) are allowed (0.03 measured in bfloat16). A merge into the wrong base differs by 0.1 or more.
RELATIVE_TOLERANCE = {torch.float32: 1e-4, torch.float16: 2.0**-7, torch.bfloat16: 2.0**-4}
SAME = 1e-6  # share of the largest logit; logits that differ by less are equal up to rounding in float32

Probes = Sequence[Sequence[int]]


@library_errors(ModelError, ValueError, OSError, ImportError)
def merge_adapter(
    base_args: ModelConfig, adapter_folder: str | Path, out_folder: str | Path, **options: Any
) -> dict[str, Any]:
    """Merge a single adapter with scale 1. ``options`` and the result are those of `merge_adapters`."""
    return merge_adapters(base_args, [Part(Path(adapter_folder))], out_folder, **options)


@library_errors(ModelError, ValueError, OSError, ImportError)
def merge_adapters(
    base_args: ModelConfig,
    parts: Sequence[Part],
    out_folder: str | Path,
    *,
    how: Rule | None = None,
    probes: Probes | None = None,
    tolerance: float | None = None,
    base_precision: str = "trained",
    dtype: str | None = None,
    max_shard_size: str | None = None,
    device_map: Any = None,
    facts: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Merge adapters into their base, write one full model, and compare its logits with the unmerged model.

    A 4- or 8-bit base is dequantised before merging, and the written model is not quantised again, because rounding
    would undo part of the unlearning. A dequantised 4-bit base computes the same function as before. A dequantised
    8-bit base does not, because 8-bit layers also round activations.

    Args:
        base_args: the base, as in training. Its adapters are merged, too. The quantisation is taken from the manifests.
        parts: the adapters and their scales.
        how: the combination, from `checked_rule`; None merges one adapter with scale 1.
        probes: token ids of prompts on which logits are compared. Default: `random_probes`.
        tolerance: largest allowed logit difference. Default: `RELATIVE_TOLERANCE` times the largest logit.
        base_precision: "original" merges into the unquantised weights of a quantised base, which may undo unlearning.
        dtype: dtype of the written weights. Default: the dtype of the base in training.
        facts: further keys of merge.json.

    Returns:
        The content of merge.json. ``mean_kl`` is KL(adapters, merged) and ``mean_kl_of_adapter`` is KL(adapters, base),
        in nats per token. After quantised training, ``as_trained`` compares with the adapters on their quantised base.

    Raises:
        ModelError: the folder is not empty, the adapters belong to another base or cannot be combined, the difference
            exceeds the tolerance, or the result equals the base. In all cases nothing is written.
    """
    out_folder = Path(out_folder)
    _refuse_existing(out_folder)
    manifest = verify_adapter(parts[0].folder)
    if how is not None:
        combinations.refuse_uncombinable(parts)
    digest = source_digest(base_args.model_name_or_path, base_args.model_revision) if manifest.get("base") else None
    args = as_trained(base_args, manifest.get("quantization"))
    quantized = bool(args.load_in_4bit or args.load_in_8bit)
    trained = _logits_on_quantised_base(args, parts, how, digest, probes, device_map) if quantized else None
    base = _base_to_merge_into(args, base_precision == "original", device_map)
    if dtype == "float32":
        base = base.float()  # before anything is added, so that nothing is rounded
    as_loaded = base.dtype
    probes = probes or random_probes(base.config.vocab_size)
    merged, expected = _merge_in_memory(base, parts, how, digest, probes)
    del base
    with replacing(out_folder) as temporary:
        written, device = _write(merged, args, temporary, dtype, max_shard_size)
        del merged
        gc.collect()
        written_logits = probe_logits(_read_back(temporary, written, args, device), probes)
        limit = default_tolerance(expected.logits, [as_loaded, written]) if tolerance is None else tolerance
        exact = args.load_in_4bit and base_precision == "trained"
        report: dict[str, Any] = {
            "base": base_args.model_name_or_path,
            **({"adapter": manifest["files"][ADAPTER_WEIGHTS]} if how is None else {}),
            "base_precision": base_precision if quantized else "as loaded",
            "quantization": manifest.get("quantization"),
            "dtype": str(written).removeprefix("torch."),
            "n_probe_tokens": sum(len(ids) for ids in probes),
            **_measured_difference(written_logits, expected, trained, limit, exact),
            **expected.settings,
            **(facts or {}),
            "files": {path.name: file_digest(path) for path in sorted(temporary.iterdir())},
        }
        formats.write(temporary / MERGE_REPORT, report, MergeReport)
        _refuse_existing(out_folder)  # another process may have written it in the meantime
    return report


def _refuse_existing(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ModelError(f"output folder '{folder}' exists and is not empty; merging never overwrites a model")


def _load_parts_or_adapter(
    base: Any, parts: Sequence[Part], rule: Rule | None, digest: str | None
) -> tuple[Any, list[str]]:
    if rule is None:
        return load_adapter(base, parts[0].folder, base_digest=digest), [ADAPTER]
    return combinations.load_parts(base, parts, digest)


def _equals_active_adapters(rule: Rule | None) -> bool:
    """Return whether the merged model must have the logits of the attached adapters: True only for exact sums."""
    return rule is None or rule.combination == "cat"


def _logits_on_quantised_base(
    args: Any, parts: Sequence[Part], rule: Rule | None, digest: str | None, probes: Probes | None, device_map: Any
) -> list[Tensor] | None:
    if not _equals_active_adapters(rule):
        return None
    model, _ = _load_parts_or_adapter(load_base(args, device_map=device_map), parts, rule, digest)
    return probe_logits(model, probes or random_probes(model.config.vocab_size))


class _Expected(NamedTuple):
    """The logits with which the written model is compared, and the settings of the combination."""

    logits: list[Tensor]  # expected logits of the written model
    reference: list[Tensor]  # logits of the base
    settings: dict[str, Any]  # settings of the combination, for merge.json


def _merge_in_memory(
    base: Any, parts: Sequence[Part], rule: Rule | None, digest: str | None, probes: Probes
) -> tuple[Any, _Expected]:
    """Merge ``parts`` and earlier adapters into the base. Return (merged model, expected logits and settings)."""
    reference = probe_logits(base, probes)
    model, names = _load_parts_or_adapter(base, parts, rule, digest)
    logits = probe_logits(model, probes)
    untie_adapted_head(model)
    if rule is None:
        return model.merge_and_unload(safe_merge=True), _Expected(logits, reference, {"combination": "stack"})
    # Both errors are relative to the norm of the exact sum.
    settings = {key: value for key, value in dataclasses.asdict(rule).items() if value is not None}
    settings["error_of_averaging"] = combinations.error_of_averaging(model, names)
    if rule.rank is not None:
        settings["rank_error"] = combinations.rank_error(model, names, rule.rank)
    combinations.fold(model, names, rule)
    beneath = [name for name in model.peft_config if name not in names]
    merged = model.merge_and_unload(safe_merge=True, adapter_names=beneath)
    logits = logits if _equals_active_adapters(rule) else probe_logits(merged, probes)
    return merged, _Expected(logits, reference, settings)


def _base_to_merge_into(args: ModelConfig, original: bool, device_map: Any) -> Any:
    onto = dataclasses.replace(args, load_in_4bit=False, load_in_8bit=False) if original else args
    base = load_base(onto, device_map=device_map, dequantize=not original)
    if quantization_of(base) is not None:
        raise ModelError(
            f"'{args.model_name_or_path}' holds its weights in 4 or 8 bit only, so there is no original to merge "
            "into; take base_precision 'trained', or name the unquantised model"
        )
    return base


def _measured_difference(
    written: Sequence[Tensor], expected: _Expected, trained: Sequence[Tensor] | None, limit: float, exact: bool
) -> dict[str, Any]:
    """Return the differences between the logits of the written model and the expected logits, for merge.json.

    If ``exact``, ``limit`` also applies to the difference from ``trained``, the logits on the quantised base. Otherwise
    this difference is only reported. Raise ModelError if a difference exceeds the limit, or if the written model equals
    the base.
    """
    numbers = compare(expected.logits, written)
    as_trained = compare(trained, written) if trained is not None else None
    worst = max(each["max_abs_logit_difference"] for each in (numbers, as_trained if exact else None) if each)
    if not worst <= limit:  # NaN is refused as well
        raise ModelError(
            f"the merged model differs from the adapter by up to {worst:.3g} in its logits, above the tolerance of "
            f"{limit:.3g}; nothing was written. Merge in float32, or raise the tolerance and evaluate the result"
        )
    largest = max(float(part.abs().max()) for part in expected.reference)
    if compare(expected.reference, written)["max_abs_logit_difference"] <= SAME * largest:
        raise ModelError(
            "the merged model answers as its base: the changes cancel, or were rounded away; nothing "
            "was written. Merge with dtype float32, or with other scales"
        )
    adapted = compare(expected.logits, expected.reference)["mean_kl"]
    return {"tolerance": limit, **numbers, "mean_kl_of_adapter": adapted, "as_trained": as_trained}


def random_probes(vocabulary: int) -> list[list[int]]:
    """Return four prompts of random token ids, ``[4, 32]``. They depend only on the vocabulary size."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, vocabulary, (4, 32), generator=generator).tolist()


@torch.no_grad()
def probe_logits(model: Any, probes: Probes) -> list[Tensor]:
    """Return the logits ``[S, V]`` of each prompt, float32 on the CPU. Each prompt runs alone, without padding."""
    device = model.get_input_embeddings().weight.device
    model.eval()
    return [model(input_ids=torch.tensor([list(ids)], device=device)).logits[0].float().cpu() for ids in probes]


def compare(expected: Sequence[Tensor], actual: Sequence[Tensor]) -> dict[str, float]:
    """Return ``max_abs_logit_difference``, and ``mean_kl``: KL(expected, actual) in nats, averaged over positions."""
    pairs = [(a.log_softmax(-1), b.log_softmax(-1)) for a, b in zip(expected, actual, strict=True)]  # [S, V]
    kl = torch.cat([(a.exp() * (a - b)).sum(-1) for a, b in pairs])  # [S of all probes]
    difference = max(float((a - b).abs().max()) for a, b in zip(expected, actual, strict=True))
    # Rounding in float32 can make a tiny KL negative.
    return {"max_abs_logit_difference": difference, "mean_kl": max(0.0, float(kl.mean()))}


def default_tolerance(logits: Sequence[Tensor], dtypes: Sequence[torch.dtype]) -> float:
    largest = max(1.0, *(float(part.abs().max()) for part in logits))
    return max(RELATIVE_TOLERANCE[dtype] for dtype in dtypes) * largest


def as_trained(base_args: ModelConfig, quantization: dict[str, Any] | None) -> Any:
    """Return arguments that load the base with the quantisation that it had in training."""
    if quantization is None:
        return base_args
    if "quant_method" in quantization:
        raise ModelError(
            f"the adapter was trained on a base quantised by {quantization['quant_method']}, which is not "
            "supported; merge into the original with an unquantised base"
        )
    return dataclasses.replace(base_args, **{"load_in_4bit": False, "load_in_8bit": False, **quantization})


def _write(
    merged: Any, args: ModelConfig, folder: Path, dtype: str | None, max_shard_size: str | None
) -> tuple[torch.dtype, torch.device]:
    """Save the model and its tokenizer to ``folder``. Return (dtype, device) of the model."""
    device = merged.get_input_embeddings().weight.device
    if dtype is None and (args.load_in_4bit or args.load_in_8bit) and args.dtype not in (None, "auto"):
        dtype = str(args.dtype)
    if dtype is not None:
        merged = merged.to(getattr(torch, dtype))
    merged.config.dtype = merged.dtype
    merged.config._name_or_path = ""  # do not publish a local path
    with disk_errors(folder):
        merged.save_pretrained(folder, **({"max_shard_size": max_shard_size} if max_shard_size else {}))
        load_tokenizer(args).save_pretrained(folder)
    return merged.dtype, device


def untie_adapted_head(model: Any) -> None:
    """Untie head and embeddings if LoRA adapts only one of them. If they remained tied, merging would change both."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    adapted: Any = next((layer for layer in ends if isinstance(layer, BaseTunerLayer)), None)
    if adapted is None or ends[0].weight is not ends[1].weight:
        return
    base = adapted.get_base_layer()
    base.weight = torch.nn.Parameter(base.weight.detach().clone(), requires_grad=False)
    model.config.tie_word_embeddings = model.config.get_text_config().tie_word_embeddings = False


def _read_back(folder: Path, dtype: torch.dtype, args: ModelConfig, device: torch.device) -> Any:
    from transformers import AutoModelForCausalLM

    options = {"attn_implementation": args.attn_implementation} if args.attn_implementation else {}
    model: Any = AutoModelForCausalLM.from_pretrained(str(folder), dtype=dtype, use_safetensors=True, **options)
    return model.to(device)
