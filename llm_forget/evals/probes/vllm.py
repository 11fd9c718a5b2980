"""Generation probe that uses vLLM (extra ``vllm``; Linux with a GPU) instead of transformers.

Written for vLLM 0.33 and tested only with a stub. vLLM rounds differently, so its texts may differ from those of
transformers, and records of the two have different keys.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_forget.core.digests import content_key
from llm_forget.core.errors import EvaluationError, MissingPackageError
from llm_forget.evals.probes.probes import Advance, PromptRow, end_tokens, generation_record
from llm_forget.evals.records import RecordWriter
from llm_forget.models.adapters.lora_config import read_config
from llm_forget.models.adapters.safe_read import ADAPTER_CONFIG, MAX_CONFIG, read_strict_json
from llm_forget.models.adapters.verification import verify_adapter
from llm_forget.models.digest import source_digest
from llm_forget.models.model_source import find_source

if TYPE_CHECKING:
    from trl import ModelConfig

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # supported by vLLM; the rank of an adapter is rounded up to one of them

# Keys of adapter_config.json that vLLM refuses or ignores; if it ignores a key, it runs another model than we do.
UNKNOWN = (
    "use_dora", "target_parameters", "modules_to_save", "rank_pattern", "alpha_pattern", "trainable_token_indices",
)  # fmt: skip


@dataclass(frozen=True)
class VllmEngine:
    """A model in vLLM. It occupies most of the GPU memory until it is deleted."""

    llm: Any
    generation_config: Any  # defines the end tokens
    adapter: Path | None  # folder of the LoRA adapter


def refuse_engine(model: ModelConfig, adapter: Path | None) -> None:
    """Raise MissingPackageError without vLLM, and EvaluationError for a model or adapter that vLLM does not support.

    Supported models are not quantised, are in a plain folder or on the Hub, and have a plain LoRA adapter or none.
    """
    try:
        import vllm  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            'generation through vLLM needs the package vllm; run `pip install "llm-forget[vllm]"` on Linux with a GPU'
        ) from error
    source = find_source(model.model_name_or_path)
    if source.kind not in ("folder", "hub") or source.adapters:
        raise EvaluationError(f"vLLM reads a folder or a Hub model, and '{source.name}' is neither; merge it first")
    if model.load_in_4bit or model.load_in_8bit:
        raise EvaluationError("generations of a model loaded in 4 or 8 bit come from transformers only; remove vllm")
    if adapter is not None:
        config = read_strict_json(adapter / ADAPTER_CONFIG, MAX_CONFIG)
        extra = [key for key in UNKNOWN if config.get(key)] + ["bias"] * (config.get("bias", "none") != "none")
        if extra or config["r"] > RANKS[-1]:
            feature = extra[0] if extra else f"rank {config['r']}"
            raise EvaluationError(f"vLLM does not support adapters with {feature}; merge the run first, or remove vllm")


def start_engine(model: ModelConfig, adapter: Path | None = None) -> VllmEngine:
    """Load a model from a folder or the Hub into vLLM, with space for one adapter.

    Raises the errors of `refuse_engine`, and AdapterRefused if the adapter was altered, because vLLM does not check it.
    """
    refuse_engine(model, adapter)
    if adapter is not None:
        verify_adapter(adapter, source_digest(model.model_name_or_path, model.model_revision))
    from transformers import GenerationConfig
    from vllm import LLM

    source = find_source(model.model_name_or_path)
    revision = source.revision or model.model_revision
    lora: dict[str, Any] = {}
    if adapter is not None:
        lora = {"enable_lora": True, "max_lora_rank": min(r for r in RANKS if r >= read_config(adapter).r)}
    # generation_config "vllm": ignore the sampling options of the model's file.
    llm = LLM(
        model=source.location, revision=revision, dtype=str(model.dtype), generation_config="vllm", seed=0, **lora
    )
    try:
        ends = GenerationConfig.from_pretrained(source.location, revision=revision)
    except OSError:  # without that file, the model configuration may define the end tokens
        from transformers import AutoConfig

        ends = GenerationConfig.from_model_config(AutoConfig.from_pretrained(source.location, revision=revision))
    return VllmEngine(llm, ends, adapter)


def probe_generate_vllm(
    engine: VllmEngine,
    tokenizer: Any,
    rows: Sequence[PromptRow],
    writer: RecordWriter,
    *,
    adapter_on: bool,
    max_new_tokens: int = 200,
    temperature: float | None = None,
    top_p: float = 1.0,
    seed: int = 0,
    batch_size: int = 1024,
    advance: Advance | None = None,
) -> None:
    """Generate with a vLLM engine, which makes its own batches. For the other arguments, see `probe_generate`.

    The seed of each prompt is made from ``seed`` and its record key. Records are written every ``batch_size`` prompts.
    """
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest

    missing, ends = writer.missing(), end_tokens(engine, tokenizer)
    todo = sorted((row for row in rows if row.key in missing), key=lambda row: len(row.prompt_ids), reverse=True)
    lora = LoRARequest("unlearned", 1, str(engine.adapter)) if adapter_on and engine.adapter is not None else None

    def parameters(row: PromptRow) -> Any:
        drawing = {"temperature": 0.0}
        if temperature is not None:
            row_seed = int(content_key(seed=seed, row=row.key)[:8], 16)
            drawing = {"temperature": temperature, "top_p": top_p, "seed": row_seed}
        # With logprobs=0 vLLM returns the log-prob of each token, which is not finite if its logits are broken.
        return SamplingParams(max_tokens=max_new_tokens, stop_token_ids=ends, logprobs=0, detokenize=False, **drawing)

    for start in range(0, len(todo), batch_size):
        batch = todo[start : start + batch_size]
        prompts = [{"prompt_token_ids": row.prompt_ids} for row in batch]
        answers = engine.llm.generate(prompts, [parameters(row) for row in batch], use_tqdm=False, lora_request=lora)
        records = []
        for row, answer in zip(batch, answers, strict=True):
            completion = answer.outputs[0]
            ids = list(completion.token_ids)
            broken = [not math.isfinite(at[token].logprob) for token, at in zip(ids, completion.logprobs, strict=True)]
            records.append(generation_record(row, ids, broken, ends, tokenizer))
        writer.append(records)
        if advance is not None:
            advance(len(records))
