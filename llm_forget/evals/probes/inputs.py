"""Prepare the inputs of a probe from the rows of a split: tokenised answers or prompts, and a digest of them."""

import random
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from llm_forget.core.digests import content_key
from llm_forget.core.errors import EvaluationError
from llm_forget.core.ignore_label import IGNORE
from llm_forget.core.registry import did_you_mean
from llm_forget.data.rows import FIELDS, Row, conversation, is_text, question, with_completion, with_question
from llm_forget.data.template import Template
from llm_forget.data.tokenise import Encoded, control_tokenizer, encode_rows
from llm_forget.evals.probes.answer_words import AnswerWords
from llm_forget.evals.probes.probes import PromptRow, TokenRow
from llm_forget.evals.records import GenerationRecord, Key
from llm_forget.evals.suite import Probe

Encode = Callable[[Sequence[Row]], Sequence[Sequence[Encoded]]]  # returns the windows of each row


@dataclass(frozen=True)
class Work:
    """A probe with its tokenised rows."""

    probe: Probe
    token_rows: Sequence[TokenRow]
    prompt_rows: Sequence[PromptRow]
    digest: str  # digest of all inputs except the model
    zlib_bytes: dict[Key, int] = field(default_factory=dict)  # zlib-compressed size of each answer, for attack zlib
    answers: dict[Key, AnswerWords] = field(default_factory=dict)  # words of each answer
    subjects: dict[str, str] = field(default_factory=dict)  # row id -> column `subject`, of rows that have one

    @property
    def kind(self) -> str:
        """Kind of probe: logprobs, gradients, generate or judge."""
        return self.probe.probe

    @property
    def keys(self) -> list[Key]:
        """Record keys in the order of the data."""
        return list(dict.fromkeys([row.key for row in self.token_rows] + [row.key for row in self.prompt_rows]))


def prepare(
    probe: Probe, rows: Sequence[Row], tokenizer: Any, template: Template, *, max_length: int | None, stride: int
) -> Work:
    """Select and tokenise the rows that a probe measures.

    Running text that is longer than ``max_length`` is cut into windows, and each window is a row: ``id``, ``id#1``, ...
    Raises EvaluationError if a row lacks the column that the probe names, or has no prompt from which to generate.
    """
    where = f"probe '{probe.name}' (split '{probe.split}')"
    encode = partial(encode_rows, tokenizer=tokenizer, template=template, max_length=max_length, stride=stride)
    passages = _passages(rows, probe, where, encode)
    places = subset(len(rows) if passages is None else len(passages), probe.limit, probe.seed)
    windows = None if passages is None else [passages[i] for i in places]
    chosen = [] if windows is not None else [rows[i] for i in places]
    subjects = {str(row["id"]): str(row["subject"]) for row in chosen if row.get("subject") is not None}
    if probe.probe != "generate":
        if windows is not None:
            token_rows = [TokenRow(w.id, 0, 0, w.input_ids, w.labels) for w in windows]
        else:
            token_rows = _token_rows(chosen, probe.field, where, encode)
        digest = _token_digest(probe.probe, token_rows, top=probe.top)
        words = _words(token_rows, tokenizer, {str(row["id"]): question(row) for row in chosen})
        return Work(probe, token_rows, [], digest, _compressed(token_rows, tokenizer), words, subjects)
    forms: list[list[Row]] = [[with_question(row, ask) for row in chosen] for ask in probe.asks] or [list(chosen)]
    prompt_rows = [
        replace(row, sample=row.sample + index * probe.samples)
        for index, questions in enumerate(forms)
        for row in _prompt_rows(questions, windows, probe, where, tokenizer, template)
    ]
    digest = content_key(
        probe="generate",
        rows=[[r.id, r.sample, r.prompt_ids] for r in prompt_rows],
        tokenizer=control_tokenizer(tokenizer).digest(),
        eos=tokenizer.eos_token_id,
        max_new_tokens=probe.max_new_tokens,
        sampling=None if probe.temperature is None else [probe.temperature, probe.top_p, probe.seed],
    )
    return Work(probe, [], prompt_rows, digest, subjects=subjects)


def judge_work(probe: Probe, prompts: Sequence[PromptRow], texts: Sequence[GenerationRecord], tokenizer: Any) -> Work:
    """Build the inputs of a probe of kind ``judge``: the prompts, with the generated texts as their answers."""
    prompt = {row.key: row.prompt_ids for row in prompts}
    token_rows = []
    for record in texts:
        ids = tokenizer(record.text, add_special_tokens=False)["input_ids"]
        before = prompt[record.key]
        token_rows.append(TokenRow(*record.key, 0, [*before, *ids], [*([-100] * len(before)), *ids]))
    return Work(probe, token_rows, [], _token_digest("logprobs", token_rows))


def _token_digest(kind: str, rows: Sequence[TokenRow], top: int | None = None) -> str:
    options = {} if top is None else {"top": top}
    content = [[r.id, r.answer_index, r.window, r.input_ids, r.labels] for r in rows]
    return content_key(probe=kind, rows=content, **options)


def _compressed(rows: Sequence[TokenRow], tokenizer: Any) -> dict[Key, int]:
    """Return the size in bytes of the zlib-compressed text of each answer."""
    answers: dict[Key, list[int]] = {}
    for row in rows:
        answers.setdefault(row.key, []).extend(label for label in row.labels if label != IGNORE)
    texts = tokenizer.batch_decode(list(answers.values()), skip_special_tokens=True)
    return {key: len(zlib.compress(text.encode())) for key, text in zip(answers, texts, strict=True)}


def _words(rows: Sequence[TokenRow], tokenizer: Any, questions: Mapping[str, str]) -> dict[Key, AnswerWords]:
    windows: dict[Key, list[tuple[list[int], list[int]]]] = {}
    for row in rows:
        windows.setdefault(row.key, []).append((row.input_ids, row.labels))
    return {key: AnswerWords(parts, tokenizer, questions.get(key[0], "")) for key, parts in windows.items()}


def subset(n: int, limit: int | None, seed: int) -> list[int]:
    """Draw ``limit`` of ``n`` rows with a seed (None: all), and return their indices in ascending order."""
    if limit is None or limit >= n:
        return list(range(n))
    return sorted(random.Random(seed).sample(range(n), limit))


def _token_rows(rows: Sequence[Row], field: str | None, where: str, encode: Encode) -> list[TokenRow]:
    variants: list[tuple[int, Row]] = []
    for row in rows:
        variant = [row] if field is None else [with_completion(row, a) for a in _answers(row, field, where)]
        variants += enumerate(variant)
    encoded = encode([row for _, row in variants])
    return [
        TokenRow(window.id, index, window.window, window.input_ids, window.labels)
        for (index, _), windows in zip(variants, encoded, strict=True)
        for window in windows
    ]


def _passages(rows: Sequence[Row], probe: Probe, where: str, encode: Encode) -> list[Encoded] | None:
    """Return the windows of running text, each with its own id; None if the rows have prompts, or if the probe has
    ``field`` or ``asks``. Raise EvaluationError if running text has no prompt from which to generate.
    """
    text = next((row for row in rows if is_text(row)), None)
    if text is None or probe.field is not None or probe.asks:
        return None
    if probe.probe == "generate" and probe.prefix is None:
        raise EvaluationError(
            f"{where}: row '{text['id']}' is running text and has no prompt to generate from; use a suite without "
            "generations, such as --suite text,privacy (and verify with --policy text), or give the probe a 'prefix'"
        )
    encoded = encode(rows)
    return [replace(w, id=f"{w.id}#{w.window}" if w.window else w.id) for windows in encoded for w in windows]


def _prompt_rows(
    rows: Sequence[Row],
    passages: Sequence[Encoded] | None,
    probe: Probe,
    where: str,
    tokenizer: Any,
    template: Template,
) -> list[PromptRow]:
    """Return a prompt for each row and sample. With a prefix, the prompt includes the start of the answer."""
    if probe.field is not None:
        rows = [with_completion(row, _answers(row, probe.field, where)[0]) for row in rows]
    windows = passages if passages is not None else [encoded[0] for encoded in encode_rows(rows, tokenizer, template)]
    prompts: list[PromptRow] = []
    for place, window in enumerate(windows):
        columns = {} if passages is not None else _further_columns(rows[place])
        if probe.prefix is None:
            ids, answer = window.prompt_ids, _last_answer(rows[place])
        else:
            ids, rest = _after_prefix(window, probe.prefix)
            answer = tokenizer.decode(rest[: probe.max_new_tokens], skip_special_tokens=True)
        prompts.append(PromptRow(window.id, ids, answer, columns=columns))
    return [replace(prompt, sample=k) for prompt in prompts for k in range(probe.samples)]


def _further_columns(row: Row) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in ("id", *FIELDS) and value is not None}


def _after_prefix(window: Encoded, prefix: float) -> tuple[list[int], list[int]]:
    """Split a window after ``prefix`` tokens of its answer (a share if below 1); return the token ids of both parts."""
    places = [place for place, label in enumerate(window.labels) if label != IGNORE]
    length = int(prefix) if prefix >= 1 else int(prefix * len(places))
    first = places[min(length, len(places) - 1)]
    # In running text the first token may be a target; the prompt needs at least one token.
    return window.input_ids[: max(1, first)], window.input_ids[max(1, first) :]


def _last_answer(row: Row) -> str:
    return [message["content"] for message in conversation(row)[0] if message["role"] == "assistant"][-1]


def _answers(row: Row, field: str, where: str) -> list[str]:
    value = row.get(field)
    if value is None:
        raise EvaluationError(f"{where}: row '{row['id']}' has no column '{field}'; {did_you_mean(field, row)}")
    answers = value if isinstance(value, list) else [value]
    if not answers or not all(isinstance(answer, str) and answer.strip() for answer in answers):
        raise EvaluationError(f"{where}: '{field}' of row '{row['id']}' must be text or a list of texts, none empty")
    return answers
