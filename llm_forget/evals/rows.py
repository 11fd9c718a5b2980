"""From the rows of a split to what a probe measures: answers or prompts as tokens, and a digest of all of them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llm_forget.data.rows import Row, conversation, is_text, with_completion
from llm_forget.data.template import Template
from llm_forget.data.tokenise import control_tokenizer, encode_rows
from llm_forget.evals.probes import PromptRow, TokenRow
from llm_forget.evals.records import Key, content_key
from llm_forget.evals.suite import Probe
from llm_forget.registry import did_you_mean


@dataclass(frozen=True)
class Work:
    """A probe with the rows it runs over."""

    probe: Probe
    token_rows: Sequence[TokenRow]
    prompt_rows: Sequence[PromptRow]
    digest: str  # of everything but the model

    @property
    def kind(self) -> str:
        """Kind of record: logprobs or generate."""
        return self.probe.probe

    @property
    def keys(self) -> list[Key]:
        """Record keys in the order of the data."""
        return list(dict.fromkeys(row.key for row in (*self.token_rows, *self.prompt_rows)))


def prepare(
    probe: Probe, rows: Sequence[Row], tokenizer: Any, template: Template, *, max_length: int | None, stride: int
) -> Work:
    """Choose and tokenise the rows of a probe.

    Raises:
        ValueError: the rows lack the probe's field, or a prompt to generate from.
    """
    chosen = [rows[i] for i in subset(len(rows), probe.limit, probe.seed)]
    where = f"probe '{probe.name}' (split '{probe.split}')"
    if probe.probe == "logprobs":
        token_rows = _token_rows(chosen, probe.field, where, tokenizer, template, max_length, stride)
        content = [[r.id, r.answer_index, r.window, r.input_ids, r.labels] for r in token_rows]
        return Work(probe, token_rows, [], content_key(probe="logprobs", rows=content))
    prompt_rows = _prompt_rows(chosen, probe.field, where, tokenizer, template)
    digest = content_key(
        probe="generate",
        rows=[[r.id, r.sample, r.prompt_ids] for r in prompt_rows],
        tokenizer=control_tokenizer(tokenizer).digest(),
        eos=tokenizer.eos_token_id,
        max_new_tokens=probe.max_new_tokens,
    )
    return Work(probe, [], prompt_rows, digest)


def subset(n: int, limit: int | None, seed: int) -> list[int]:
    """Places of a seeded sample of ``limit`` of ``n`` rows, in order; equal for all probes of equal arguments."""
    if limit is None or limit >= n:
        return list(range(n))
    return sorted(random.Random(seed).sample(range(n), limit))


def _token_rows(
    rows: Sequence[Row],
    field: str | None,
    where: str,
    tokenizer: Any,
    template: Template,
    max_length: int | None,
    stride: int,
) -> list[TokenRow]:
    variants: list[tuple[int, Row]] = []
    for row in rows:
        variants += enumerate(
            [row] if field is None else [with_completion(row, a) for a in _answers(row, field, where)]
        )
    encoded = encode_rows([row for _, row in variants], tokenizer, template, max_length=max_length, stride=stride)
    return [
        TokenRow(window.id, index, window.window, window.input_ids, window.labels)
        for (index, _), windows in zip(variants, encoded, strict=True)
        for window in windows
    ]


def _prompt_rows(
    rows: Sequence[Row], field: str | None, where: str, tokenizer: Any, template: Template
) -> list[PromptRow]:
    for row in rows:
        if is_text(row):
            raise ValueError(
                f"{where}: row '{row['id']}' is running text and has no prompt to generate from; take a suite without "
                "generations, such as --suite text"
            )
    encoded = encode_rows(rows, tokenizer, template)
    prompts = []
    for row, windows in zip(rows, encoded, strict=True):
        answer = _last_answer(row) if field is None else _answers(row, field, where)[0]
        prompts.append(PromptRow(windows[0].id, windows[0].prompt_ids, answer))
    return prompts


def _last_answer(row: Row) -> str:
    return [message["content"] for message in conversation(row)[0] if message["role"] == "assistant"][-1]


def _answers(row: Row, field: str, where: str) -> list[str]:
    value = row.get(field)
    if value is None:
        raise ValueError(f"{where}: row '{row['id']}' has no column '{field}'; {did_you_mean(field, row)}")
    answers = value if isinstance(value, list) else [value]
    if not answers or not all(isinstance(answer, str) and answer.strip() for answer in answers):
        raise ValueError(f"{where}: '{field}' of row '{row['id']}' must be text or a list of texts, none of them empty")
    return answers
