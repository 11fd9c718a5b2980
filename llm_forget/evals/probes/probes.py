"""Log-probability and generation probes. Each is one pass of a model over the rows of a split.

The longest rows come first, and finished records are written to disk at once. If memory runs out, the batch size is
halved. The batch size affects records only by floating-point rounding and by the choice of sampled tokens.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from llm_forget.core.digests import content_key
from llm_forget.core.errors import EvaluationError, NotEnoughMemoryError
from llm_forget.evals.distributions import Distributions
from llm_forget.evals.probes.teacher_forcing import forward_with_logits, per_row
from llm_forget.evals.records import GenerationRecord, Key, RecordWriter, TokenRecord
from llm_forget.logprobs.batches import collate
from llm_forget.logprobs.logprobs import evaluation_mode

Advance = Callable[[int], None]  # called with the number of newly finished records
Item = TypeVar("Item")
Batch = TypeVar("Batch")

# Maximum number of elements of the [N, V] logits of one batch.
LOGITS_ON_CPU, LOGITS_ON_GPU = 2**26, 2**28


@dataclass(frozen=True)
class TokenRow:
    """One tokenised window of an answer; most answers have a single window."""

    id: str
    answer_index: int
    window: int
    input_ids: list[int]
    labels: list[int]  # not shifted; -100: no target; exactly one window labels each target of an answer

    @property
    def key(self) -> Key:
        return self.id, self.answer_index


@dataclass(frozen=True)
class PromptRow:
    """A prompt for generation, and the true answer to it."""

    id: str
    prompt_ids: list[int]
    reference: str = ""
    sample: int = 0
    columns: Mapping[str, Any] = field(default_factory=dict)  # further columns of the row, which metrics may read

    @property
    def key(self) -> Key:
        return self.id, self.sample


def probe_logprobs(
    model: Any,
    rows: Sequence[TokenRow],
    writer: RecordWriter,
    *,
    batch_size: int = 64,
    advance: Advance | None = None,
    plain: bool = False,
    top: int | None = None,
) -> None:
    """Write a `TokenRecord` of each answer by teacher forcing. Answers with a record in ``writer`` are skipped.

    Batches are smaller than ``batch_size`` if their logits would be too large. If the model supports it, padding is
    skipped, and a prefix that rows of a batch share is computed once; ``plain`` turns this off. With ``top``, the
    records contain `Distributions` of this number of tokens.
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
        # Sorted, so that neighbours share long prefixes.
        batch = sorted(batch, key=lambda row: row.input_ids)
        values_per_row = per_row(forward(right_padded(batch, device)), top)
        finished = []
        # Change `measured` only after the forward pass: if it runs out of memory, the batch is measured again.
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
    with evaluation_mode(model), torch.inference_mode():
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
    """Write a `GenerationRecord` of each prompt: a text up to an end token (`end_tokens`) or ``max_new_tokens`` tokens.

    Sampling options and penalties of the model's generation config are overridden, so all models generate under the
    same settings. If the logits of a token are NaN or infinite, the text ends and its record is ``broken``.

    Args:
        rows: prompts, one for each sample of a row; a prompt is skipped if ``writer`` already has its record.
        temperature: None is greedy decoding, 1 samples from the distribution of the model.
        top_p: sample only from the smallest set of tokens with at least this probability; 1 is the whole vocabulary.
        seed: seeds the samples together with the row ids of a batch, so other batches may give other texts. The random
            state is restored afterwards.

    Raises EvaluationError if ``temperature`` is not positive, ``top_p`` is not in (0, 1], or there is no end token.
    """
    missing = writer.missing()
    todo = [row for row in rows if row.key in missing]
    ends = end_tokens(model, tokenizer)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else ends[0]
    options = _decoding(temperature, top_p)

    def measure(batch: Sequence[PromptRow]) -> None:
        inputs = _left_padded(batch, pad, device)
        steps: list[Tensor] = []  # [B] each
        processors = [_failure_processor(steps, ends[0])]
        config = _generation(ends, pad, max_new_tokens, options)
        with _seeded_batch(seed, batch):
            out = model.generate(**inputs, generation_config=config, logits_processor=processors)
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
    with evaluation_mode(model), torch.inference_mode():
        _in_batches(todo, lambda row: len(row.prompt_ids), measure, batch_size=batch_size)


def generation_record(
    row: PromptRow, ids: Sequence[int], broken: Sequence[bool], ends: Sequence[int], tokenizer: Any
) -> GenerationRecord:
    """Make the record of a text up to its first end token. ``broken`` marks ``ids`` with NaN or infinite logits."""
    stop = next((place for place, token in enumerate(ids) if token in ends), len(ids))
    n = min(stop + 1, len(ids))
    failed = any(broken[:n])  # tokens after the end do not count
    text = "" if failed else tokenizer.decode(ids[:stop], skip_special_tokens=True)
    return GenerationRecord(*row.key, text, n, broken=failed)


def _failure_processor(steps: list[Tensor], end: int) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a logits processor that ends rows with NaN or infinite logits and adds their mask ``[B]`` to ``steps``."""

    def process(_: Tensor, logits: Tensor) -> Tensor:
        # The maximum is not finite for NaN, for +inf, and if all logits are -inf.
        failed = ~logits.amax(-1).isfinite()  # [B]
        steps.append(failed)
        ended = logits.masked_fill(failed[:, None], -torch.inf)  # [B, V]
        ended[:, end].masked_fill_(failed, 0.0)
        return ended

    return process


def end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """Return the ids of the end tokens of generation config and tokenizer. Raise EvaluationError if there are none."""
    model_ends = model.generation_config.eos_token_id
    ids = [] if model_ends is None else ([model_ends] if isinstance(model_ends, int) else list(model_ends))
    if tokenizer.eos_token_id is not None and tokenizer.eos_token_id not in ids:
        ids.append(tokenizer.eos_token_id)
    if not ids:
        raise EvaluationError("neither generation config nor tokenizer names an end-of-sequence token; set one")
    return ids


def _decoding(temperature: float | None, top_p: float) -> dict[str, Any]:
    """Return options of `generate`: for greedy decoding, or for sampling that is limited by nothing but ``top_p``."""
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

    # Set every option: `generate` takes a missing one from the generation config of the model.
    return GenerationConfig(
        num_beams=1, max_new_tokens=max_new_tokens, eos_token_id=ends, pad_token_id=pad, use_cache=True,
        repetition_penalty=1.0, no_repeat_ngram_size=0, **options,
    )  # fmt: skip


@contextmanager
def _seeded_batch(seed: int, batch: Sequence[PromptRow]) -> Iterator[None]:
    """Seed the random state with ``seed`` and the rows of the batch. Restore the earlier state at the end."""
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
    """Measure in batches, longest first, so that memory runs out early or never. Halve batches that do not fit."""
    queue = sorted(items, key=length, reverse=True)
    start = 0
    while start < len(queue):
        fitting = batch_size if tokens is None else min(batch_size, tokens // max(1, length(queue[start])))
        batch = queue[start : start + max(1, fitting)]
        if fits(measure, batch):
            start += len(batch)
        elif len(batch) == 1:
            raise NotEnoughMemoryError(
                f"out of memory with a single sequence of {length(batch[0])} tokens; lower max_length, or load the "
                "model in 4 or 8 bit"
            )
        else:
            batch_size = len(batch) // 2


def fits(measure: Callable[[Batch], None], batch: Batch) -> bool:
    """Measure a batch and return True. If memory runs out, free the memory of the batch and return False."""
    from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

    try:
        measure(batch)
        return True
    except RuntimeError as error:
        if not should_reduce_batch_size(error):
            raise
    # Not in the except block: the traceback there keeps the tensors of the failed batch in memory.
    clear_device_cache(garbage_collection=True)
    return False


def _group_length(rows: Sequence[TokenRow]) -> Callable[[TokenRow], int]:
    """Return a sort key for windows: the length of the longest window of the same row, which keeps rows together."""
    longest: dict[str, int] = {}
    for row in rows:
        longest[row.id] = max(longest.get(row.id, 0), len(row.input_ids))
    return lambda row: longest[row.id]


def _token_record(key: Key, windows: dict[int, tuple[Tensor, ...]]) -> TokenRecord:
    parts = [windows[index] for index in sorted(windows)]
    logps, hits, means, variances, *top = (torch.cat(part).numpy() for part in zip(*parts, strict=True))  # [n, ...]
    return TokenRecord(*key, logps, hits, means, variances, top=Distributions(*top) if top else None)


def right_padded(rows: Sequence[TokenRow], device: torch.device) -> dict[str, Tensor]:
    """Return ``input_ids``, ``attention_mask`` and ``labels``, each ``[B, S]``; padding is on the right and masked."""
    batch = collate([{"input_ids": row.input_ids, "labels": row.labels} for row in rows], 0)
    return {name: batch[name].to(device) for name in ("input_ids", "attention_mask", "labels")}


def _left_padded(rows: Sequence[PromptRow], pad: int, device: torch.device) -> dict[str, Tensor]:
    """Return ``input_ids`` and ``attention_mask``, each ``[B, S]``; padding is on the left and masked."""
    width = max(len(row.prompt_ids) for row in rows)
    ids = torch.full((len(rows), width), pad, dtype=torch.long)
    attention = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        n = len(row.prompt_ids)
        ids[i, width - n :], attention[i, width - n :] = torch.tensor(row.prompt_ids), 1
    return {"input_ids": ids.to(device), "attention_mask": attention.to(device)}


def _device(model: Any) -> torch.device:
    """Return the device of the input embeddings. Token ids must be there, even if a model is on several devices."""
    return model.get_input_embeddings().weight.device
