"""Generation through vLLM, where it is installed (the extra ``vllm``; Linux with a GPU): the same records.

Written against the interface of vLLM 0.33 and tested with a stand-in of it. It has not been run on vLLM itself: its
kernels round otherwise than transformers', so that single words may differ, and records of both must not be mixed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llm_forget.evals.probes import Advance, PromptRow, generation_record
from llm_forget.evals.records import RecordWriter


def start_engine(model: str | Path, *, dtype: str = "auto", adapter: Path | None = None, rank: int = 16) -> Any:
    """A vLLM engine for a model folder or Hub name; it takes most of the GPU's memory until it is deleted.

    Args:
        model: a merged model, or the model under ``adapter``.
        dtype: float32, bfloat16, float16, or auto for that of the files.
        adapter: LoRA folder that will be asked for; DoRA and adapters of experts must be merged instead.
        rank: of the adapter, at least.

    Raises:
        ModuleNotFoundError: vLLM is not installed.
    """
    try:
        from vllm import LLM
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'generation through vLLM needs the package vllm; run `pip install "llm-forget[vllm]"` on Linux with a GPU'
        ) from error
    lora = {} if adapter is None else {"enable_lora": True, "max_lora_rank": rank}
    # generation_config "vllm": none of the sampling options in the model's own file.
    return LLM(model=str(model), dtype=dtype, generation_config="vllm", seed=0, **lora)


def probe_generate_vllm(
    engine: Any,
    tokenizer: Any,
    rows: Sequence[PromptRow],
    writer: RecordWriter,
    *,
    ends: Sequence[int],
    max_new_tokens: int = 200,
    adapter: Path | None = None,
    batch_size: int = 1024,
    advance: Advance | None = None,
) -> None:
    """`probe_generate`, greedy, by an engine that batches by itself.

    Args:
        engine: of `start_engine`.
        tokenizer: the model's; prompts are given as token ids, and texts are decoded here.
        rows: prompts; those whose record ``writer`` already has are left out.
        writer: receives the records.
        ends: tokens that end a generation (`end_tokens` of the model).
        max_new_tokens: tokens at most.
        adapter: the LoRA folder the engine was started for; None asks the model without it.
        batch_size: prompts after which records are written.
        advance: progress.
    """
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest

    missing = writer.missing()
    todo = sorted((row for row in rows if row.key in missing), key=lambda row: len(row.prompt_ids), reverse=True)
    # The log-prob of the token taken shows where the model gave no probabilities.
    parameters = SamplingParams(
        temperature=0.0, max_tokens=max_new_tokens, stop_token_ids=list(ends), logprobs=0, detokenize=False
    )
    lora = None if adapter is None else LoRARequest("unlearned", 1, str(adapter))
    for start in range(0, len(todo), batch_size):
        batch = todo[start : start + batch_size]
        prompts = [{"prompt_token_ids": row.prompt_ids} for row in batch]
        answers = engine.generate(prompts, parameters, use_tqdm=False, lora_request=lora)
        records = []
        for row, answer in zip(batch, answers, strict=True):
            said = answer.outputs[0]
            ids = list(said.token_ids)
            broken = [not math.isfinite(at[token].logprob) for token, at in zip(ids, said.logprobs, strict=True)]
            records.append(generation_record(row, ids, broken, ends, tokenizer))
        writer.append(records)
        if advance is not None:
            advance(len(records))
