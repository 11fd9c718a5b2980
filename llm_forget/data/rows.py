"""What a row is: its form, its id, its content as one string for comparison, and what makes a set of rows unusable.

Error sentences name a file and a row number (1-based) or an id, never what a row says.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llm_forget.core.errors import DataError
from llm_forget.core.registry import did_you_mean

if TYPE_CHECKING:
    import pyarrow

Row = Mapping[str, Any]
Message = dict[str, str]

# The forms a row may take and the columns each needs, in the order in which they are looked for.
FORMS: dict[str, tuple[str, ...]] = {
    "messages": ("messages",),
    "prompt/completion": ("prompt", "completion"),
    "question/answer": ("question", "answer"),
    "text": ("text",),
}
FIELDS = tuple(dict.fromkeys(column for columns in FORMS.values() for column in columns))
_COLUMN_NAME = re.compile("[A-Za-z_][A-Za-z0-9_.-]{0,39}")
_ZERO_WIDTH = dict.fromkeys(map(ord, "\u200b\u200c\u200d\u2060\ufeff\u00ad\u180e"))


def row_form(row: Row, where: str) -> str:
    """The first form all of whose columns the row fills; ``where`` names the row in the error.

    Raises:
        ValueError: the row fills no form.
    """
    for form, columns in FORMS.items():
        if all(row.get(column) is not None for column in columns):
            return form
    there = [column for column, value in row.items() if value is not None]
    half = next((columns for columns in FORMS.values() if row.get(columns[0]) is not None), None)
    missing = f"has no '{half[1]}'" if half else "has no column to learn from"
    raise DataError(
        f"{where} {missing}; a row needs {' or '.join('+'.join(c) for c in FORMS.values())} "
        f"(it has {_listed(there)}); name other columns with `fields`"
    )


def column_hint(given: str, columns: Iterable[str]) -> str:
    """`did_you_mean` for columns; they are not listed where they may be cells, of a CSV without a line of names."""
    columns = list(columns)
    hint = did_you_mean(given, columns)
    return hint if hint.startswith("did you mean") or _are_names(columns) else f"it has {_listed(columns)}"


def _listed(columns: Sequence[str]) -> str:
    if _are_names(columns):
        return ", ".join(sorted(columns)) or "nothing"
    return f"{len(columns)} columns, not all named by one word: is the line of column names missing?"


def _are_names(columns: Iterable[str]) -> bool:
    return all(_COLUMN_NAME.fullmatch(column) for column in columns)


def normalise_row(row: Row, where: str) -> dict[str, Any]:
    """Check one row and add ``prompt`` and ``completion`` where it is question and answer; other columns stay.

    Raises:
        ValueError: no form, a value of the wrong type, or nothing that could carry loss.
    """
    form = row_form(row, where)
    added: dict[str, Any] = {}
    if form == "question/answer":
        added = {"prompt": row["question"], "completion": row["answer"]}
    merged = {**row, **added}
    if form == "messages":
        _check_messages(merged["messages"], where, "messages")
        if not any(m["role"] == "assistant" and m["content"].strip() for m in merged["messages"]):
            raise DataError(f"{where} has no target tokens: no assistant message with content")
    elif form == "text":
        _check_text(merged["text"], where, "text")
    else:
        _check_prompt_and_completion(merged, where, FORMS[form])
    return added


def completion_messages(row: Row) -> list[Message]:
    """The completion as a list of messages."""
    completion = row["completion"]
    if isinstance(completion, str):
        return [{"role": "assistant", "content": completion}]
    return [_plain_message(m) for m in completion]


def prompt_messages(row: Row) -> list[Message]:
    """The prompt as a list of messages."""
    prompt = row["prompt"]
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    return [_plain_message(m) for m in prompt]


def conversation(row: Row) -> tuple[list[Message], int]:
    """All messages of a row that is not plain text, and how many of them come before the first that may carry loss."""
    if row.get("messages") is not None:
        return [_plain_message(m) for m in row["messages"]], 0
    prompt = prompt_messages(row)
    return prompt + completion_messages(row), len(prompt)


def is_text(row: Row) -> bool:
    """Whether the row is running text, without a prompt."""
    return row.get("messages") is None and row.get("completion") is None


def with_completion(row: Row, completion: str) -> dict[str, Any]:
    """The same row with another answer in place of the last one (a paraphrase, a perturbed answer, a refusal).

    Raises:
        ValueError: a text row has no answer to replace.
    """
    if is_text(row):
        raise DataError(f"row '{row.get('id')}' is running text and has no answer that another could replace")
    if row.get("messages") is None:
        return {**row, "completion": completion}
    messages = conversation(row)[0]
    last = max(i for i, m in enumerate(messages) if m["role"] == "assistant")
    return {**row, "messages": [*messages[:last], {"role": "assistant", "content": completion}]}


def with_question(row: Row, template: str) -> dict[str, Any]:
    """The same row asked in another way: ``template`` with the last thing the user says in place of ``{prompt}``.

    Raises:
        ValueError: a text row asks nothing.
    """
    if is_text(row):
        raise DataError(f"row '{row.get('id')}' is running text and asks nothing that could be put in another way")
    if row.get("messages") is None:
        return {**row, "prompt": template.replace("{prompt}", row["prompt"])}
    messages = conversation(row)[0]
    last = max(i for i, m in enumerate(messages) if m["role"] == "user")
    asked = {**messages[last], "content": template.replace("{prompt}", messages[last]["content"])}
    return {**row, "messages": [*messages[:last], asked, *messages[last + 1 :]]}


def content(row: Row) -> str:
    """Everything a row says, as one string: what ids are derived from and overlaps are found by."""
    if is_text(row):
        return str(row["text"])
    return " ".join(m["content"] for m in conversation(row)[0])


def normalise_text(text: str) -> str:
    """Compatibility-composed, case-folded, without zero-width characters, each run of white space one space."""
    if text.isascii():  # nothing to compose, and no zero-width characters
        return " ".join(text.lower().split())
    folded = unicodedata.normalize("NFKC", text.translate(_ZERO_WIDTH)).casefold()
    return " ".join(unicodedata.normalize("NFKC", folded).split())


def derived_id(row: Row) -> str:
    """Id of a row that brings none: from its normalised content, so it does not depend on order or file."""
    return "sha256-" + hashlib.sha256(normalise_text(content(row)).encode()).hexdigest()[:16]


def check_ids(ids: Sequence[Any], wheres: Sequence[str], *, field: str) -> None:
    """Refuse ids that are not strings, empty, or of several lines.

    Raises:
        ValueError: names the row and the type it found.
    """
    for value, where in zip(ids, wheres, strict=True):
        if not isinstance(value, str):
            kind = "nothing" if value is None else type(value).__name__
            raise DataError(
                f"{where} has an id that is not a string ({kind} in '{field}'); write ids in quotes, "
                "since numbers lose leading zeros"
            )
        if not value.strip():
            raise DataError(f"{where} has an empty id in '{field}'; fill it or leave the column out")
        if len(value.splitlines()) > 1:
            raise DataError(f"{where} has an id with a line break in '{field}'; lists of ids have one a line")


def check_unique(ids: pyarrow.ChunkedArray, where: Callable[[int], str]) -> None:
    """Refuse two rows with one id; ``where`` names the row at a place.

    Raises:
        ValueError: names both rows.
    """
    import pyarrow.compute as pc

    if pc.count_distinct(ids).as_py() == len(ids):
        return
    seen: dict[str, int] = {}
    for place, row_id in enumerate(ids.to_pylist()):
        first = seen.setdefault(row_id, place)
        if first != place:
            why = "the same content" if row_id.startswith("sha256-") else f"the same id '{row_id}'"
            raise DataError(f"{where(place)} and {where(first)} have {why}; every row must occur once")


def check_overlap(
    forget: Iterable[Row], retain: Iterable[Row], *, names: tuple[str, str] = ("forget", "retain")
) -> None:
    """Refuse two sets that share a row: training would pull it both ways. Compared by normalised content.

    Raises:
        ValueError: how many rows are shared, and the ids of the first.
    """
    first = {_content_key(row): str(row["id"]) for row in _said(forget)}
    shared = [(first[key], str(row["id"])) for row in _said(retain) if (key := _content_key(row)) in first]
    if shared:
        pairs = ", ".join(f"'{a}'" if a == b else f"'{a}' = '{b}'" for a, b in shared[:3])
        more = ", ..." if len(shared) > 3 else ""
        raise DataError(
            f"{len(shared)} {'row is' if len(shared) == 1 else 'rows are'} in both {names[0]} and {names[1]} "
            f"(after normalising text): {pairs}{more}; remove them from one of the two"
        )


def _said(rows: Iterable[Row]) -> Iterable[Row]:
    """Of a table only the columns that say something, many rows at a time; other rows as they are."""
    from datasets import Dataset

    if not isinstance(rows, Dataset):
        return rows
    wanted = [name for name in ("id", *FIELDS) if name in rows.column_names]
    parts = rows.select_columns(wanted).with_format("arrow").iter(batch_size=10_000)
    return (row for part in parts for row in part.to_pylist())


def _content_key(row: Row) -> bytes:
    return hashlib.sha256(normalise_text(content(row)).encode()).digest()


def rename_fields(columns: Sequence[str], fields: Mapping[str, str], where: str) -> dict[str, str]:
    """Mapping old name -> new name that puts a field map ``{prompt: column, ...}`` into effect.

    Raises:
        ValueError: an unknown field or column, or one column used twice.
    """
    for field, column in fields.items():
        if field not in FIELDS:
            raise DataError(f"`fields` of {where} has no field '{field}'; {did_you_mean(field, FIELDS)}")
        if not isinstance(column, str) or column not in columns:
            raise DataError(
                f"{where} has no column '{column}' for field '{field}'; {column_hint(str(column), columns)}"
            )
    if len(set(fields.values())) < len(fields):
        raise DataError(f"`fields` of {where} uses one column for two fields; allowed: one column each")
    return {column: field for field, column in fields.items() if column != field}


def inner_values(values: Sequence[Any], path: str, column: str, where: str) -> list[Any]:
    """What lies at ``path`` in every value of a column of mappings: ``prompt.text`` is ``text`` in column ``prompt``.

    Raises:
        ValueError: a row where the way ends; names the row and the key, never the value.
    """
    keys = path[len(column) + 1 :].split(".")
    return [_inner(value, keys, column, path, f"{where} row {number}") for number, value in enumerate(values, start=1)]


def _inner(value: Any, keys: Sequence[str], column: str, path: str, where: str) -> Any:
    for key in keys:
        if not isinstance(value, Mapping):
            kind = "empty" if value is None else type(value).__name__
            raise DataError(f"{where} has a '{column}' that is {kind}; '{path}' needs an object with a key '{key}'")
        # Arrow gives every object all keys of the column, so a key that the row lacks is there, without a value.
        if value.get(key) is None:
            there = [name for name, held in value.items() if held is not None]
            raise DataError(f"{where} has no '{key}' in '{column}' ('{path}' asks for it); {column_hint(key, there)}")
        value, column = value[key], f"{column}.{key}"
    return value


def _plain_message(message: Mapping[str, Any]) -> Message:
    # Arrow gives every struct all keys of the column; a template must not see keys the row did not have.
    return {key: value for key, value in message.items() if value is not None}


def _check_prompt_and_completion(row: Row, where: str, columns: tuple[str, ...]) -> None:
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, list):
        _check_messages(prompt, where, columns[0])
    elif not isinstance(prompt, str):
        raise DataError(f"{where} has a '{columns[0]}' that is {type(prompt).__name__}; allowed: text or messages")
    if isinstance(completion, list):
        _check_messages(completion, where, columns[1])
        if not any(m["role"] == "assistant" and m["content"].strip() for m in completion):
            raise DataError(f"{where} has no target tokens: no assistant message with content in '{columns[1]}'")
    else:
        _check_text(completion, where, columns[1])


def _check_text(value: Any, where: str, column: str) -> None:
    if not isinstance(value, str):
        raise DataError(f"{where} has a '{column}' that is {type(value).__name__}; allowed: text")
    if not value.strip():
        raise DataError(f"{where} has no target tokens: '{column}' is empty")


def _check_messages(messages: Any, where: str, column: str) -> None:
    if not isinstance(messages, list) or not messages:
        raise DataError(f"{where} has '{column}' that is not a list of messages; allowed: [{{role, content}}, ...]")
    for place, message in enumerate(messages, start=1):
        role = message.get("role") if isinstance(message, Mapping) else None
        if not isinstance(role, str) or not isinstance(message.get("content"), str):
            raise DataError(f"{where}, message {place} of '{column}' needs a role and a content, both text")
