"""Merge an adapter into its base, and prove from the written file that it answers as the adapter did."""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from llm_forget.models.adapters import load_adapter, replacing, verify_adapter
from llm_forget.models.digest import source_digest
from llm_forget.models.load import load_base, load_tokenizer
from llm_forget.models.lora import quantization_of, reference_mode
from llm_forget.models.untrusted import ADAPTER_WEIGHTS
from llm_forget.run import file_digest, write_json

if TYPE_CHECKING:
    from trl import ModelConfig

MERGE_REPORT = "merge.json"
# Largest difference allowed by default, as a share of the largest logit. In float32 merging only reorders sums: 3e-6 is
# measured on a 135M model. In 16 bits every merged weight is rounded once more: 16 times the rounding step of the type
# (2^-8, 2^-11); 0.03 is measured in bfloat16. A merge into the wrong base is off by 0.1 and more.
RELATIVE_TOLERANCE = {torch.float32: 1e-4, torch.float16: 2.0**-7, torch.bfloat16: 2.0**-4}

Probes = Sequence[Sequence[int]]


def merge_adapter(
    base_args: ModelConfig,
    adapter_folder: str | Path,
    out_folder: str | Path,
    *,
    probes: Probes | None = None,
    tolerance: float | None = None,
    base_precision: Literal["trained", "original"] = "trained",
    device_map: Any = None,
) -> dict[str, Any]:
    """Write base plus adapter as one full model, read it back, and compare its logits with the adapter's.

    An adapter trained on a 4- or 8-bit base is merged into that base *dequantised*, which in 4 bit is the function it
    was trained on. Nothing is ever merged into packed 4-bit weights: rounding them again undoes part of the forgetting.

    Args:
        base_args: the model beneath, as at training; where it carries a target adapter, both are merged. How it was
            quantised is taken from the adapter's manifest.
        out_folder: must not exist or be empty.
        probes: token ids of some prompts; by default random ones.
        tolerance: largest allowed logit difference; default `RELATIVE_TOLERANCE` times the largest logit.
        base_precision: "original" merges a quantised-trained adapter into the unquantised weights instead; evaluate
            what comes out, as forgetting may be undone.

    Returns:
        ``max_abs_logit_difference``, ``tolerance`` (logits), ``mean_kl`` (nats per token, from adapter to file),
        ``mean_kl_of_adapter`` (from adapter to reference: what the adapter does at all), ``adapter`` (digest of its
        weights), ``files`` (digests), and, for
        quantised training, ``as_trained`` (the same differences to the adapter on its quantised base).

    Raises:
        ValueError: the difference is above the tolerance (nothing is left behind), the output folder is taken, or the
            adapter does not belong to the base.
    """
    out_folder = Path(out_folder)
    if out_folder.exists() and (not out_folder.is_dir() or any(out_folder.iterdir())):
        raise ValueError(f"output folder '{out_folder}' exists and is not empty; merging never overwrites a model")
    manifest = verify_adapter(Path(adapter_folder))
    digest = source_digest(base_args.model_name_or_path, base_args.model_revision) if manifest.get("base") else None
    args = _as_trained(base_args, manifest.get("quantization"))
    quantized = bool(args.load_in_4bit or args.load_in_8bit)
    trained: list[Tensor] | None = None
    if quantized:
        model = load_adapter(load_base(args, device_map=device_map), adapter_folder, base_digest=digest)
        probes = probes or random_probes(model.config.vocab_size)
        trained = probe_logits(model, probes)
        del model
        gc.collect()
    base = _base_to_merge_into(args, base_precision == "original", device_map)
    model = load_adapter(base, adapter_folder, base_digest=digest)
    probes = probes or random_probes(model.config.vocab_size)
    adapter = probe_logits(model, probes)
    with reference_mode(model):
        reference = probe_logits(model, probes)
    with replacing(out_folder) as temporary:
        dtype, device = _write(model, args, temporary)
        del base, model
        gc.collect()
        merged = probe_logits(_read(temporary, dtype, args, device), probes)
        limit = tolerance if tolerance is not None else _default_tolerance(adapter, dtype)
        report: dict[str, Any] = {
            "base": base_args.model_name_or_path,
            "adapter": manifest["files"][ADAPTER_WEIGHTS],
            "base_precision": base_precision if quantized else "as loaded",
            "quantization": manifest.get("quantization"),
            "dtype": str(dtype).removeprefix("torch."),
            "n_probe_tokens": sum(len(ids) for ids in probes),
            "tolerance": limit,
            **compare(adapter, merged),
            "mean_kl_of_adapter": compare(adapter, reference)["mean_kl"],
            "as_trained": compare(trained, merged) if trained is not None else None,
            "files": {path.name: file_digest(path) for path in sorted(temporary.iterdir())},
        }
        # In 8 bit the activations are rounded too, and the original base is another function: there the difference
        # to training is reported, but is no error of merging.
        exact = args.load_in_4bit and base_precision == "trained"
        _refuse_above(limit, [adapter, *([trained] if exact and trained is not None else [])], merged)
        write_json(temporary / MERGE_REPORT, report)
    return report


def _base_to_merge_into(args: ModelConfig, original: bool, device_map: Any) -> Any:
    onto = dataclasses.replace(args, load_in_4bit=False, load_in_8bit=False) if original else args
    base = load_base(onto, device_map=device_map, dequantize=not original)
    if quantization_of(base) is not None:
        raise ValueError(
            f"'{args.model_name_or_path}' holds its weights in 4 or 8 bit only, so there is no original to merge "
            "into; take base_precision 'trained', or name the unquantised model"
        )
    return base


def _refuse_above(limit: float, expected: Sequence[Sequence[Tensor]], merged: Sequence[Tensor]) -> None:
    worst = max(compare(logits, merged)["max_abs_logit_difference"] for logits in expected)
    if not worst <= limit:  # NaN is refused as well
        raise ValueError(
            f"the merged model differs from the adapter by up to {worst:.3g} in its logits, above the tolerance of "
            f"{limit:.3g}; nothing was written. Merge in float32, or raise the tolerance and evaluate the result"
        )


def random_probes(vocabulary: int, rows: int = 4, length: int = 32) -> list[list[int]]:
    """Token ids that need no data: the same for every model of this vocabulary size."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, vocabulary, (rows, length), generator=generator).tolist()


@torch.no_grad()
def probe_logits(model: Any, probes: Probes) -> list[Tensor]:
    """Logits ``[S, V]`` of each probe, float32 on the CPU; one probe at a time, so that no padding plays a part."""
    device = model.get_input_embeddings().weight.device
    model.eval()
    return [model(input_ids=torch.tensor([list(ids)], device=device)).logits[0].float().cpu() for ids in probes]


def compare(expected: Sequence[Tensor], given: Sequence[Tensor]) -> dict[str, float]:
    """Largest absolute logit difference, and mean KL(expected, given) per position in nats."""
    pairs = [(a.log_softmax(-1), b.log_softmax(-1)) for a, b in zip(expected, given, strict=True)]  # [S, V]
    kl = torch.cat([(a.exp() * (a - b)).sum(-1) for a, b in pairs])  # [S of all probes]
    difference = max(float((a - b).abs().max()) for a, b in zip(expected, given, strict=True))
    return {"max_abs_logit_difference": difference, "mean_kl": float(kl.mean())}


def _default_tolerance(logits: Sequence[Tensor], dtype: torch.dtype) -> float:
    return RELATIVE_TOLERANCE[dtype] * max(1.0, max(float(part.abs().max()) for part in logits))


def _as_trained(base_args: ModelConfig, quantization: dict[str, Any] | None) -> Any:
    """The arguments that give the base the adapter was trained on."""
    if quantization is None:
        return base_args
    if "quant_method" in quantization:
        raise ValueError(
            f"the adapter was trained on a base quantised by {quantization['quant_method']}, which is not "
            "supported; merge into the original with an unquantised base"
        )
    return dataclasses.replace(base_args, **{"load_in_4bit": False, "load_in_8bit": False, **quantization})


def _write(model: Any, args: ModelConfig, folder: Path) -> tuple[torch.dtype, torch.device]:
    """Merge all active adapters and save the model and its tokenizer."""
    device = model.get_input_embeddings().weight.device
    _untie_adapted_head(model)
    merged = model.merge_and_unload(safe_merge=True)
    if (args.load_in_4bit or args.load_in_8bit) and args.dtype not in (None, "auto"):
        merged = merged.to(getattr(torch, str(args.dtype)))
    merged.config.dtype = merged.dtype
    merged.config._name_or_path = ""  # names this machine's folders
    merged.save_pretrained(folder)
    load_tokenizer(args).save_pretrained(folder)
    return merged.dtype, device


def _untie_adapted_head(model: Any) -> None:
    """LoRA on one of two tied matrices changes only that one: they part, or merging would change the other as well."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    adapted: Any = next((layer for layer in ends if isinstance(layer, BaseTunerLayer)), None)
    if adapted is None or ends[0].weight is not ends[1].weight:
        return
    base = adapted.get_base_layer()
    base.weight = torch.nn.Parameter(base.weight.detach().clone(), requires_grad=False)
    model.config.tie_word_embeddings = model.config.get_text_config().tie_word_embeddings = False


def _read(folder: Path, dtype: torch.dtype, args: ModelConfig, device: torch.device) -> Any:
    from transformers import AutoModelForCausalLM

    options = {"attn_implementation": args.attn_implementation} if args.attn_implementation else {}
    model: Any = AutoModelForCausalLM.from_pretrained(str(folder), dtype=dtype, use_safetensors=True, **options)
    return model.to(device)
