"""The expensive part of an evaluation: one pass of a model over the rows of a split.

A probe takes any causal LM as it is (which adapter is on is the caller's matter), goes through the rows longest first,
and hands finished records to a `RecordWriter`, which keeps them on disk at once. The batch is halved when memory runs
out; records do not depend on the batch, up to floating point and but for sampled text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from llm_forget.core.digests import content_key
from llm_forget.core.errors import EvaluationError, NotEnoughMemoryError
from llm_forget.evals.probes.teacher_forcing import forward_with_logits, per_row
from llm_forget.evals.records import GenerationRecord, Key, RecordWriter, TokenRecord
from llm_forget.logprobs.batches import collate

Advance = Callable[[int], None]  # called with the number of records just finished
Item = TypeVar("Item")

# Largest [N, V] block of logits of one batch, in elements.
LOGITS_ON_CPU, LOGITS_ON_GPU = 2**26, 2**28


@dataclass(frozen=True)
class TokenRow:
    """One window of one answer of one row; most answers have a single window."""

    id: str
    answer_index: int
    window: int
    input_ids: list[int]
    labels: list[int]  # unshifted, -100 ignored; a target is labelled in one window only

    @property
    def key(self) -> Key:
        return self.id, self.answer_index


@dataclass(frozen=True)
class PromptRow:
    """A prompt to continue, and what the true continuation is."""

    id: str
    prompt_ids: list[int]
    reference: str = ""
    sample: int = 0

    @property
    def key(self) -> Key:
        return self.id, self.sample


def probe_logprobs(
    model: nn.Module,
    rows: Sequence[TokenRow],
    writer: RecordWriter,
    *,
    batch_size: int = 64,
    advance: Advance | None = None,
    plain: bool = False,
) -> None:
    """Teacher-forced pass: one record per row and answer, with what `TokenRecord` holds of every target token.

    Where the model allows it, what the rows of a batch begin with in common is passed over once, and no padding at all.

    Args:
        model: any Hugging Face or PEFT causal LM.
        rows: windows of answers; rows whose record ``writer`` already has are left out.
        writer: receives the records.
        batch_size: sequences at most; fewer where their logits would not fit a fixed budget.
        advance: progress.
        plain: pass over padded rows as they are, to compare with.
    """
    missing = writer.missing()
    todo = [row for row in rows if row.key in missing]
    if not todo:
        return
    windows: dict[Key, int] = {}
    for row in todo:
        windows[row.key] = windows.get(row.key, 0) + 1
    measured: dict[Key, dict[int, tuple[Tensor, ...]]] = {}

    def measure(batch: Sequence[TokenRow]) -> None:
        # Neighbours that begin alike share the most.
        batch = sorted(batch, key=lambda row: row.input_ids)
        values_per_row = per_row(forward(_right_padded(batch, device)))
        finished = []
        # Only now, when memory can no longer run out: what is taken from `measured` would be missing for the retry.
        for row, values in zip(batch, values_per_row, strict=True):
            parts = measured.setdefault(row.key, {})
            parts[row.window] = values
            if len(parts) == windows[row.key]:
                finished.append(_token_record(row.key, measured.pop(row.key)))
        writer.append(finished)
        if advance is not None:
            advance(len(finished))

    device = _device(model)
    vocabulary = model.get_output_embeddings().weight.shape[0]
    block = (LOGITS_ON_CPU if device.type == "cpu" else LOGITS_ON_GPU) // vocabulary
    with _evaluation_mode(model):
        forward, shared = forward_with_logits(model, plain=plain)
        length = _group_length(todo) if shared else lambda row: len(row.input_ids)
        _in_batches(todo, length, measure, batch_size=batch_size, tokens=block)


def probe_generate(
    model: Any,
    tokenizer: Any,
    rows: Sequence[PromptRow],
    writer: RecordWriter,
    *,
    max_new_tokens: int = 200,
    temperature: float | None = None,
    top_p: float = 1.0,
    seed: int = 0,
    batch_size: int = 64,
    advance: Advance | None = None,
) -> None:
    """Continuation of every prompt, left-padded, with KV cache, until an end token or ``max_new_tokens``.

    End tokens are the model's and the tokenizer's; sampling options and penalties in the model's own generation
    config are overruled, so that two models are asked in the same way.

    Args:
        model: any Hugging Face or PEFT causal LM.
        tokenizer: the model's.
        rows: prompts, one for each sample of a row; those whose record ``writer`` already has are left out.
        writer: receives the records.
        max_new_tokens: tokens at most.
        temperature: None is greedy, 1 samples from the model's own distribution.
        top_p: when sampling, the smallest set of tokens with at least this probability; 1 is the whole vocabulary.
        seed: of the samples. A batch draws by the seed and the rows in it, so that the same call gives the same text;
            another batch size, or a run resumed after other batches, may draw other samples. The caller's random state
            is left as it was.
        batch_size: sequences at most.
        advance: progress.

    Where the logits of a next token are no distribution (NaN, or infinite), a text ends and its record is ``broken``:
    argmax of NaN would be some token all the same, and drawing from it an error.

    Raises:
        ValueError: a temperature that is not positive, ``top_p`` outside (0, 1], or no end token.
    """
    missing = writer.missing()
    todo = [row for row in rows if row.key in missing]
    ends = end_tokens(model, tokenizer)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else ends[0]
    options = _decoding(temperature, top_p)

    def measure(batch: Sequence[PromptRow]) -> None:
        inputs = _left_padded(batch, pad, device)
        steps: list[Tensor] = []  # [B] each
        config = _generation(ends, pad, max_new_tokens, options)
        with _seeded_batch(seed, batch):
            out = model.generate(
                **inputs, generation_config=config, logits_processor=[_failure_processor(steps, ends[0])]
            )
        broken = torch.stack(steps, -1).tolist()  # [B][steps]
        generated = out[:, inputs["input_ids"].shape[1] :].tolist()
        records = [
            generation_record(row, ids, failed, ends, tokenizer)
            for row, ids, failed in zip(batch, generated, broken, strict=True)
        ]
        writer.append(records)
        if advance is not None:
            advance(len(records))

    device = _device(model)
    with _evaluation_mode(model):
        _in_batches(todo, lambda row: len(row.prompt_ids), measure, batch_size=batch_size)


def generation_record(
    row: PromptRow, ids: Sequence[int], broken: Sequence[bool], ends: Sequence[int], tokenizer: Any
) -> GenerationRecord:
    """What was said until the first end token; ``broken``: which of ``ids`` came from logits that are no numbers."""
    stop = next((place for place, token in enumerate(ids) if token in ends), len(ids))
    n = min(stop + 1, len(ids))
    failed = any(broken[:n])  # not what follows the end
    text = "" if failed else tokenizer.decode(ids[:stop], skip_special_tokens=True)
    return GenerationRecord(*row.key, text, n, broken=failed)


def _failure_processor(steps: list[Tensor], end: int) -> Callable[[Tensor, Tensor], Tensor]:
    """A logits processor that notes at each step which rows have no next token, ``[B]``, and ends them."""

    def process(_: Tensor, logits: Tensor) -> Tensor:
        # NaN goes through a maximum; +inf alone, or -inf everywhere, are no distribution either.
        failed = ~logits.amax(-1).isfinite()  # [B]
        steps.append(failed)
        ended = logits.masked_fill(failed[:, None], -torch.inf)  # [B, V]
        ended[:, end].masked_fill_(failed, 0.0)
        return ended

    return process


def end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """Token ids that end a generation: what the model's generation config says, and the tokenizer's end of sequence.

    Raises:
        ValueError: neither names one.
    """
    model_ends = model.generation_config.eos_token_id
    ids = [] if model_ends is None else ([model_ends] if isinstance(model_ends, int) else list(model_ends))
    if tokenizer.eos_token_id is not None and tokenizer.eos_token_id not in ids:
        ids.append(tokenizer.eos_token_id)
    if not ids:
        raise EvaluationError(
            "neither the model's generation config nor its tokenizer names an end-of-sequence token; set one"
        )
    return ids


def _decoding(temperature: float | None, top_p: float) -> dict[str, Any]:
    """Options of `generate` for greedy decoding, or for sampling with nothing cut off but by ``top_p``."""
    if temperature is None:
        return {"do_sample": False, "temperature": 1.0, "top_p": 1.0, "top_k": 50}
    if not temperature > 0:
        raise EvaluationError(f"temperature must be above 0, not {temperature:g}; leave it out for greedy decoding")
    if not 0 < top_p <= 1:
        raise EvaluationError(f"top_p must be above 0 and at most 1, not {top_p:g}")
    whole = {"top_k": 0, "min_p": 0.0, "typical_p": 1.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0}
    return {"do_sample": True, "temperature": float(temperature), "top_p": float(top_p), **whole}


def _generation(ends: list[int], pad: int, max_new_tokens: int, options: dict[str, Any]) -> Any:
    from transformers import GenerationConfig

    # Stated one by one: what is left out here, `generate` fills in from the model's own generation config.
    return GenerationConfig(
        num_beams=1,
        max_new_tokens=max_new_tokens,
        eos_token_id=ends,
        pad_token_id=pad,
        use_cache=True,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        **options,
    )


@contextmanager
def _seeded_batch(seed: int, batch: Sequence[PromptRow]) -> Iterator[None]:
    """Random state of one batch: by seed and rows, so that a batch halved or measured alone is seeded all the same."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(int(content_key(seed=seed, rows=[row.key for row in batch])[:15], 16))
        yield


def _in_batches(
    items: Sequence[Item],
    length: Callable[[Item], int],
    measure: Callable[[Sequence[Item]], None],
    *,
    batch_size: int,
    tokens: int | None = None,
) -> None:
    """Longest first, so that memory runs out at once or never; halve the batch when it does."""
    queue = sorted(items, key=length, reverse=True)
    start = 0
    while start < len(queue):
        fitting = batch_size if tokens is None else min(batch_size, tokens // max(1, length(queue[start])))
        batch = queue[start : start + max(1, fitting)]
        if _fits(measure, batch):
            start += len(batch)
        elif len(batch) == 1:
            raise NotEnoughMemoryError(
                f"out of memory with a single sequence of {length(batch[0])} tokens; lower max_length, or load the "
                "model in 4 or 8 bit"
            )
        else:
            batch_size = len(batch) // 2


def _fits(measure: Callable[[Sequence[Item]], None], batch: Sequence[Item]) -> bool:
    from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

    try:
        measure(batch)
        return True
    except RuntimeError as error:
        if not should_reduce_batch_size(error):
            raise
    # Out of the handler, whose traceback would keep the tensors of the failed batch alive.
    clear_device_cache(garbage_collection=True)
    return False


def _group_length(rows: Sequence[TokenRow]) -> Callable[[TokenRow], int]:
    """Length by which answers to one question stay together: that of the longest."""
    longest: dict[str, int] = {}
    for row in rows:
        longest[row.id] = max(longest.get(row.id, 0), len(row.input_ids))
    return lambda row: longest[row.id]


def _token_record(key: Key, windows: dict[int, tuple[Tensor, ...]]) -> TokenRecord:
    parts = [windows[index] for index in sorted(windows)]
    logps, hits, means, variances = (torch.cat(part).numpy() for part in zip(*parts, strict=True))  # [n] each
    return TokenRecord(*key, logps, hits, means, variances)


def _right_padded(rows: Sequence[TokenRow], device: torch.device) -> dict[str, Tensor]:
    """``input_ids``, ``attention_mask``, ``labels``, each ``[B, S]``; the pad id is never attended to."""
    batch = collate([{"input_ids": row.input_ids, "labels": row.labels} for row in rows], 0)
    return {name: batch[name].to(device) for name in ("input_ids", "attention_mask", "labels")}


def _left_padded(rows: Sequence[PromptRow], pad: int, device: torch.device) -> dict[str, Tensor]:
    """``input_ids`` and ``attention_mask``, each ``[B, S]``."""
    width = max(len(row.prompt_ids) for row in rows)
    ids = torch.full((len(rows), width), pad, dtype=torch.long)
    attention = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        n = len(row.prompt_ids)
        ids[i, width - n :], attention[i, width - n :] = torch.tensor(row.prompt_ids), 1
    return {"input_ids": ids.to(device), "attention_mask": attention.to(device)}


def _device(model: Any) -> torch.device:
    """Where token ids must go: the device of the input embeddings, also for a model spread over several."""
    return model.get_input_embeddings().weight.device


@contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    """No gradients, no dropout; every module's mode is put back, for a model that is still being trained."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module, training in modes.items():
            module.training = training
