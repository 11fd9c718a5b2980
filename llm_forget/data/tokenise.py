"""Tokenise rows, with labels on the tokens of answers.

The whole string of a row is encoded at once, and character offsets show which tokens belong to an answer. A token can
cross the start of an answer: the space after ``Answer:`` merges with the first word. Such a token belongs to the
answer, so the prompt for generation is an exact prefix of the token ids used in training.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from llm_forget.core.errors import DataError
from llm_forget.core.ignore_label import IGNORE
from llm_forget.core.progress import bar_if_long
from llm_forget.data.private_storage import map_storage
from llm_forget.data.rows import Row, is_text
from llm_forget.data.template import Rendered, Template, control_name, render, special_tokens

if TYPE_CHECKING:
    from datasets import Dataset

_FORMAT = 1  # part of the cache key; raise it when the same row gives different tokens


@dataclass(frozen=True)
class Encoded:
    """The token ids and labels of one window of a row. Only rows longer than ``max_length`` have several windows."""

    id: str  # id of the row
    input_ids: list[int]
    labels: list[int]  # the same ids, -100 at positions without loss
    prompt_ids: list[int]  # prompt for generation: all ids of the row before its last answer
    window: int = 0  # number of the window in its row, from 0


class ControlTokenizer:
    """A copy of a fast tokenizer. It encodes each `control_name` as its control token, and ``</s>`` as plain text."""

    def __init__(self, tokenizer: Any) -> None:
        from tokenizers import AddedToken
        from tokenizers.processors import Sequence as NoProcessor

        if not getattr(tokenizer, "is_fast", False):
            raise DataError(f"{type(tokenizer).__name__} gives no character offsets; load the fast tokenizer")
        self.special = special_tokens(tokenizer)
        self.prefix = _prefix_ids(tokenizer)
        self._backend = copy.deepcopy(tokenizer.backend_tokenizer)
        self._backend.no_truncation()
        self._backend.no_padding()
        # The post-processor trims spaces from offsets; a trimmed token would not show that it straddles a boundary.
        self._backend.post_processor = NoProcessor([])
        self._backend.encode_special_tokens = True
        added = self._backend.get_added_tokens_decoder()
        for number in self.special.values():
            strip = {side: number in added and getattr(added[number], side) for side in ("lstrip", "rstrip")}
            self._backend.add_tokens([AddedToken(control_name(number), normalized=False, special=False, **strip)])
        self._control = {self._backend.token_to_id(control_name(n)): n for n in self.special.values()}
        self._forbidden = set(self.special.values()) - {tokenizer.unk_token_id}

    def encode(self, texts: Sequence[str]) -> list[tuple[list[int], list[tuple[int, int]], list[bool]]]:
        """Return (token ids, character offsets, whether each token is a control token) for each text."""
        out = []
        for index, encoding in enumerate(self._backend.encode_batch(list(texts), add_special_tokens=False)):
            ids = encoding.ids
            if not self._forbidden.isdisjoint(ids):  # control tokens of the template have other ids here
                raise _ControlInTextError(index)
            control = [number in self._control for number in ids]
            out.append(([self._control.get(number, number) for number in ids], encoding.offsets, control))
        return out

    def digest(self) -> str:
        """Return a digest of the tokenizer's data. Tokenizers that encode differently have different digests."""
        import hashlib

        return hashlib.sha256(self._backend.to_str().encode() + repr(self.prefix).encode()).hexdigest()


class _ControlInTextError(ValueError):
    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.index = index


_CONTROL_TOKENIZERS: WeakKeyDictionary[Any, tuple[int, ControlTokenizer]] = WeakKeyDictionary()


def control_tokenizer(tokenizer: Any) -> ControlTokenizer:
    """Return the `ControlTokenizer` of a tokenizer. It is cached until tokens are added to the tokenizer."""
    size, cached = _CONTROL_TOKENIZERS.get(tokenizer, (-1, None))
    if cached is None or size != len(tokenizer):
        cached = ControlTokenizer(tokenizer)
        _CONTROL_TOKENIZERS[tokenizer] = (len(tokenizer), cached)
    return cached


def ids_inside_a_sentence(tokenizer: Any) -> Callable[[str], list[int]]:
    """Return a function that maps a word or name to its token ids inside a sentence, that is, after a space."""
    return lambda text: list(control_tokenizer(tokenizer).encode([f" {text}"])[0][0])


def encode_rows(
    rows: Iterable[Row], tokenizer: Any, template: Template, *, max_length: int | None = None, stride: int = 0
) -> list[list[Encoded]]:
    """Return the encoded windows of each row. Raise DataError with the row's id if a row cannot be encoded.

    A window has at most ``max_length`` tokens, and repeats ``stride`` tokens of the window before it as context.
    """
    rows = list(rows)
    control = control_tokenizer(tokenizer)
    rendered = [render(row, tokenizer, template, control.special) for row in rows]
    try:
        encodings = control.encode([r.text for r in rendered])
    except _ControlInTextError as error:
        raise DataError(
            f"row '{rows[error.index]['id']}' has text that this tokenizer encodes as a control token; remove it"
        ) from None
    out = []
    for row, string, (ids, offsets, is_control) in zip(rows, rendered, encodings, strict=True):
        answer_numbers = _answer_numbers(string, offsets, is_control)
        # A chat template writes its own begin-of-sequence token; plain text gets the one the tokenizer adds.
        prefix = [] if template.chat and not is_text(row) else control.prefix
        out.append(_encode_windows(row, prefix, ids, answer_numbers, max_length, stride))
    return out


def tokenise_dataset(
    rows: Dataset,
    tokenizer: Any,
    template: Template,
    *,
    max_length: int | None = None,
    stride: int = 0,
    num_proc: int | None = None,
) -> Dataset:
    """Return a table of all windows of all rows, with columns ``id, input_ids, labels, window, source_index``.

    If the rows are in the Hub cache of `datasets`, their tokens are cached there, too. All other tokens leave no copy
    (see `map_storage`).
    """
    from datasets.fingerprint import Hasher

    # The automatic fingerprint would hash the tokenizer object, whose hash changes when it is first used.
    parts = (rows._fingerprint, control_tokenizer(tokenizer).digest(), tokenizer.chat_template, tokenizer.eos_token)
    fingerprint = Hasher.hash((*parts, template, max_length, stride, _FORMAT))
    with bar_if_long(len(rows)):
        return rows.map(
            _encode_batch,
            batched=True,
            batch_size=256,
            remove_columns=rows.column_names,
            fn_kwargs={"tokenizer": tokenizer, "template": template, "max_length": max_length, "stride": stride},
            num_proc=num_proc if num_proc and num_proc > 1 and len(rows) > 256 else None,
            new_fingerprint=fingerprint,
            features=_token_features(),
            desc="Tokenising",
            **map_storage(rows),
        )


def tokenise_rows(rows: Sequence[Row], tokenizer: Any, template: Template, **limits: Any) -> Dataset:
    """Return a table as `tokenise_dataset` does, for rows in memory. No copy remains. ``limits``: see `encode_rows`."""
    from datasets import Dataset

    columns = ("id", "input_ids", "labels", "window")
    windows = [window for row in encode_rows(rows, tokenizer, template, **limits) for window in row]
    lines = [{**{name: getattr(w, name) for name in columns}, "source_index": 0} for w in windows]
    return Dataset.from_list(lines, features=_token_features())


def _token_features() -> Any:
    from datasets import Features, List, Value

    numbers = {"window": Value("int32"), "source_index": Value("int32")}
    ids = {name: List(Value("int32")) for name in ("input_ids", "labels")}
    return Features({"id": Value("string"), **ids, **numbers})


def _encode_batch(batch: dict[str, list[Any]], **options: Any) -> dict[str, list[Any]]:
    rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
    out: dict[str, list[Any]] = {"id": [], "input_ids": [], "labels": [], "window": [], "source_index": []}
    for row, windows in zip(rows, encode_rows(rows, **options), strict=True):
        for encoded in windows:
            for column in ("id", "input_ids", "labels", "window"):
                out[column].append(getattr(encoded, column))
            out["source_index"].append(row.get("source_index") or 0)
    return out


def _prefix_ids(tokenizer: Any) -> list[int]:
    """Return the ids of the special tokens that a tokenizer inserts before a text."""
    alone = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    cut = next(i for i in range(len(whole) - len(alone) + 1) if whole[i : i + len(alone)] == alone)
    return list(whole[:cut])


def _answer_numbers(rendered: Rendered, offsets: list[tuple[int, int]], is_control: list[bool]) -> list[int]:
    """Return each token's answer number from 0, or -1. A token that crosses an answer's start belongs to the answer."""
    if len(rendered.targets) == 1:
        start, stop = rendered.targets[0]
        spans = zip(offsets, is_control, strict=True)
        return [0 if begin < stop and (begin >= start if c else end > start) else -1 for (begin, end), c in spans]
    answer_numbers, index = [], 0
    for (begin, end), control in zip(offsets, is_control, strict=True):
        while index + 1 < len(rendered.targets) and begin >= rendered.targets[index][1]:
            index += 1
        start, stop = rendered.targets[index]
        # White space that a control token absorbs must not make it part of the answer.
        after_start = begin >= start if control else end > start
        answer_numbers.append(index if after_start and begin < stop else -1)
    return answer_numbers


def _encode_windows(
    row: Row, prefix: list[int], body: list[int], answer_numbers: list[int], max_length: int | None, stride: int
) -> list[Encoded]:
    row_id, ids = str(row["id"]), prefix + body
    answer_labels = [n if number >= 0 else IGNORE for n, number in zip(body, answer_numbers, strict=True)]
    labels = [IGNORE] * len(prefix) + answer_labels
    if is_text(row):
        labels[:1] = [IGNORE]  # no earlier token can predict the first one
    elif labels[:1] != [IGNORE]:
        raise DataError(f"row '{row_id}' has no token before its answer; give it a prompt")
    first = next((i for i, label in enumerate(labels) if label != IGNORE), None)
    if first is None:
        raise DataError(f"row '{row_id}' has no target tokens; add text")
    prompt = ids[: max(len(prefix) + answer_numbers.index(max(answer_numbers)), 1)]
    keep = len(prefix) if is_text(row) else first
    out = []
    for number, (start, stop, new) in enumerate(windows(labels, keep, max_length, stride, row_id)):
        repeated = ids[:keep] if start else []
        ignored = [IGNORE] * (len(repeated) + new - start)
        out.append(Encoded(row_id, repeated + ids[start:stop], ignored + labels[new:stop], prompt, number))
    return out


def windows(
    labels: Sequence[int], keep: int, max_length: int | None, stride: int, row_id: str
) -> list[tuple[int, int, int]]:
    """Split a row into windows ``(start, stop, new)``: tokens ``start:stop``, of which ``new:stop`` are new.

    All windows but the first also begin with the first ``keep`` tokens of the row (the prompt), and repeat ``stride``
    tokens of the window before, at least one if ``keep`` is 0. Windows without a target are left out. Raise DataError
    if a window has no room for new tokens.
    """
    length = len(labels)
    if max_length is None or length <= max_length:
        return [(0, length, 0)]
    overlap = max(stride, 0 if keep else 1)
    if keep + overlap >= max_length:
        raise DataError(
            f"row '{row_id}' has {length} tokens; prompt ({keep}) and overlap ({overlap}) leave no room in a "
            f"window of {max_length}; raise max_length or lower stride"
        )
    spans, new = [(0, max_length, 0)], max_length
    while new < length:
        start = max(new - overlap, keep)
        stop = min(start + max_length - keep, length)
        spans.append((start, stop, new))
        new = stop
    return [span for span in spans if any(label != IGNORE for label in labels[max(span[2], 1) : span[1]])]
