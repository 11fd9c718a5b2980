"""Rows as token ids with labels on the answers: one tokenisation of the whole string, boundaries by character offsets.

A prompt that is tokenised alone ends in other tokens than the same prompt with its answer (``"Answer: "`` ends in a
space, which the first word of the answer takes into its own token). Counting prompt tokens then loses that word. Here
the token that straddles the boundary belongs to the answer, and the prompt for generation is the exact prefix of what
is trained on.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from llm_forget.core.errors import DataError
from llm_forget.core.labels import IGNORE
from llm_forget.core.progress import bar_if_long
from llm_forget.data.private_storage import storage
from llm_forget.data.rows import Row, is_text
from llm_forget.data.template import Rendered, Template, control_name, render, special_tokens

if TYPE_CHECKING:
    from datasets import Dataset

_FORMAT = 1  # raise when the same row would give other tokens: cached tokens are found by it


@dataclass(frozen=True)
class Encoded:
    """One window of a row, as token ids. Most rows have one window."""

    id: str
    input_ids: list[int]
    labels: list[int]  # the same, -100 where no loss is wanted
    prompt_ids: list[int]  # what to generate from: an exact prefix of the row's ids, up to its (last) answer
    window: int = 0


class ControlTokenizer:
    """A copy of a fast tokenizer that reads control tokens by unspellable names, and their usual strings as text.

    ``encode_special_tokens`` is the library's own switch for reading special-token strings as text; the names that
    `template.py` writes are added as ordinary tokens, so they are found in the same, single pass.
    """

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
        # The post-processor also trims spaces off the offsets, and a trimmed token hides that it straddles a boundary.
        self._backend.post_processor = NoProcessor([])
        self._backend.encode_special_tokens = True
        added = self._backend.get_added_tokens_decoder()
        for number in self.special.values():
            strip = {side: number in added and getattr(added[number], side) for side in ("lstrip", "rstrip")}
            self._backend.add_tokens([AddedToken(control_name(number), normalized=False, special=False, **strip)])
        self._control = {self._backend.token_to_id(control_name(n)): n for n in self.special.values()}
        self._forbidden = set(self.special.values()) - {tokenizer.unk_token_id}

    def encode(self, texts: Sequence[str]) -> list[tuple[list[int], list[tuple[int, int]], list[bool]]]:
        """Ids, character offsets, and which tokens are control tokens, of each text.

        Raises:
            _ControlInTextError: the vocabulary turns plain text into a control token.
        """
        out = []
        for place, encoding in enumerate(self._backend.encode_batch(list(texts), add_special_tokens=False)):
            ids = encoding.ids
            if not self._forbidden.isdisjoint(ids):  # control tokens of the template have other numbers here
                raise _ControlInTextError(place)
            control = [number in self._control for number in ids]
            out.append(([self._control.get(number, number) for number in ids], encoding.offsets, control))
        return out

    def digest(self) -> str:
        """Changes whenever the tokenizer would give other ids."""
        import hashlib

        return hashlib.sha256(self._backend.to_str().encode() + repr(self.prefix).encode()).hexdigest()


class _ControlInTextError(ValueError):
    def __init__(self, place: int) -> None:
        super().__init__(place)
        self.place = place


_CONTROL_TOKENIZERS: WeakKeyDictionary[Any, tuple[int, ControlTokenizer]] = WeakKeyDictionary()


def control_tokenizer(tokenizer: Any) -> ControlTokenizer:
    """The `ControlTokenizer` of a tokenizer, made once (again when tokens were added since)."""
    size, known = _CONTROL_TOKENIZERS.get(tokenizer, (-1, None))
    if known is None or size != len(tokenizer):
        known = ControlTokenizer(tokenizer)
        _CONTROL_TOKENIZERS[tokenizer] = (len(tokenizer), known)
    return known


def encode_rows(
    rows: Iterable[Row], tokenizer: Any, template: Template, *, max_length: int | None = None, stride: int = 0
) -> list[list[Encoded]]:
    """The windows of each row.

    Args:
        rows: as `load_source` gives them.
        tokenizer: a fast tokenizer.
        template: see `template_for`.
        max_length: tokens of the longest window; None for no limit.
        stride: tokens of context that a window repeats from the one before.

    Raises:
        ValueError: a row that cannot be encoded; names its id.
    """
    rows = list(rows)
    control = control_tokenizer(tokenizer)
    rendered = [render(row, tokenizer, template, control.special) for row in rows]
    try:
        encodings = control.encode([r.text for r in rendered])
    except _ControlInTextError as error:
        raise DataError(
            f"row '{rows[error.place]['id']}' has text that this tokenizer can only read as a control token; remove it"
        ) from None
    out = []
    for row, string, (ids, offsets, real) in zip(rows, rendered, encodings, strict=True):
        owners = _owners(string, offsets, real)
        # A chat template writes its own begin-of-sequence token; plain text gets the one the tokenizer adds.
        prefix = [] if template.chat and not is_text(row) else control.prefix
        out.append(_windows_of(row, prefix, ids, owners, max_length, stride))
    return out


def encode_row(
    row: Row, tokenizer: Any, template: Template, *, max_length: int | None = None, stride: int = 0
) -> list[Encoded]:
    """The windows of one row; see `encode_rows`."""
    return encode_rows([row], tokenizer, template, max_length=max_length, stride=stride)[0]


def encode_prompt(row: Row, tokenizer: Any, template: Template) -> list[int]:
    """What to generate from: the exact prefix of the ids trained on, up to the (last) answer.

    A row that has only a prompt is given a one-letter answer to see where its tokens would begin.
    """
    if is_text(row) and row.get("prompt") is not None:
        row = {**row, "completion": "A"}
    return encode_row({"id": "prompt", **row}, tokenizer, template)[0].prompt_ids


def tokenise_dataset(
    rows: Dataset,
    tokenizer: Any,
    template: Template,
    *,
    max_length: int | None = None,
    stride: int = 0,
    num_proc: int | None = None,
) -> Dataset:
    """All windows of all rows, in order, with columns ``id, input_ids, labels, window, source_index``.

    Kept rows from the Hub, which are on disk already, are found again in the Arrow cache when nothing that matters has
    changed; all others go where `scratch.storage` says, so that no copy of what is to be forgotten is left.
    """
    from datasets import Features, List, Value
    from datasets.fingerprint import Hasher

    numbers = {"window": Value("int32"), "source_index": Value("int32")}
    ids = {name: List(Value("int32")) for name in ("input_ids", "labels")}

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
            features=Features({"id": Value("string"), **ids, **numbers}),
            desc="Tokenising",
            **storage(rows),
        )


def _encode_batch(batch: dict[str, list[Any]], **how: Any) -> dict[str, list[Any]]:
    rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
    out: dict[str, list[Any]] = {"id": [], "input_ids": [], "labels": [], "window": [], "source_index": []}
    for row, windows in zip(rows, encode_rows(rows, **how), strict=True):
        for encoded in windows:
            for column in ("id", "input_ids", "labels", "window"):
                out[column].append(getattr(encoded, column))
            out["source_index"].append(row.get("source_index") or 0)
    return out


def _prefix_ids(tokenizer: Any) -> list[int]:
    """The special tokens that a tokenizer puts before a text."""
    alone = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    cut = next(i for i in range(len(whole) - len(alone) + 1) if whole[i : i + len(alone)] == alone)
    return list(whole[:cut])


def _owners(rendered: Rendered, offsets: list[tuple[int, int]], real: list[bool]) -> list[int]:
    """Which answer each token belongs to, by place; -1 for none. A token that straddles a start is the answer's."""
    if len(rendered.targets) == 1:
        start, stop = rendered.targets[0]
        spans = zip(offsets, real, strict=True)
        return [0 if begin < stop and (begin >= start if c else end > start) else -1 for (begin, end), c in spans]
    owners, place = [], 0
    for (begin, end), control in zip(offsets, real, strict=True):
        while place + 1 < len(rendered.targets) and begin >= rendered.targets[place][1]:
            place += 1
        start, stop = rendered.targets[place]
        # A control token that takes in the white space around it must not be drawn into the answer by that.
        after_start = begin >= start if control else end > start
        owners.append(place if after_start and begin < stop else -1)
    return owners


def _windows_of(
    row: Row, prefix: list[int], body: list[int], owners: list[int], max_length: int | None, stride: int
) -> list[Encoded]:
    row_id, ids = str(row["id"]), prefix + body
    labels = [IGNORE] * len(prefix) + [n if owner >= 0 else IGNORE for n, owner in zip(body, owners, strict=True)]
    if is_text(row):
        labels[:1] = [IGNORE]  # nothing comes before the first token that could predict it
    elif labels[:1] != [IGNORE]:
        raise DataError(f"row '{row_id}' has no token before its answer to predict it from; give it a prompt")
    first = next((i for i, label in enumerate(labels) if label != IGNORE), None)
    if first is None:
        raise DataError(f"row '{row_id}' has no target tokens; give it more text")
    prompt = ids[: max(len(prefix) + owners.index(max(owners)), 1)]
    keep = len(prefix) if is_text(row) else first
    out = []
    for number, (start, stop, new) in enumerate(windows(labels, keep, max_length, stride, row_id)):
        kept = ids[:keep] if start else []
        ignored = [IGNORE] * (len(kept) + new - start)
        out.append(Encoded(row_id, kept + ids[start:stop], ignored + labels[new:stop], prompt, number))
    return out


def windows(
    labels: Sequence[int], keep: int, max_length: int | None, stride: int, row_id: str
) -> list[tuple[int, int, int]]:
    """Cut a row into ``(start, stop, new)``: tokens ``start:stop``, of which ``new:stop`` were in no window before.

    Every later window begins with the first ``keep`` tokens (the prompt, or the begin-of-sequence token) and repeats
    ``stride`` tokens as context (at least one where nothing is kept, so that its first new token can be predicted).
    Every token is new exactly once. Windows without a target are left out.

    Raises:
        ValueError: the prompt leaves no room; names the id.
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
