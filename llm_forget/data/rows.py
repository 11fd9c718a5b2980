"""Functions that check rows and read their form, id and content.

Errors name the file and the row number (from 1) or the row id, but never contain text of a row.
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

# Forms of a row, and the columns that each form needs. A row has the first form whose columns all have values.
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
    """Return the form of a row, the first in `FORMS` whose columns all have values. Raise DataError if it has none."""
    for form, columns in FORMS.items():
        if all(row.get(column) is not None for column in columns):
            return form
    filled = [column for column, value in row.items() if value is not None]
    partial_form = next((columns for columns in FORMS.values() if row.get(columns[0]) is not None), None)
    missing = f"has no '{partial_form[1]}'" if partial_form else "has no column to learn from"
    raise DataError(
        f"{where} {missing}; a row needs {' or '.join('+'.join(c) for c in FORMS.values())} "
        f"(it has {_listed(filled)}); name other columns with `fields`"
    )


def column_hint(name: str, columns: Iterable[str]) -> str:
    """Return a hint for an error: a similar column, or all columns if their names cannot be data of a CSV file."""
    columns = list(columns)
    hint = did_you_mean(name, columns)
    return hint if hint.startswith("did you mean") or _are_names(columns) else f"it has {_listed(columns)}"


def _listed(columns: Sequence[str]) -> str:
    if _are_names(columns):
        return ", ".join(sorted(columns)) or "nothing"
    return f"{len(columns)} columns, not all named by one word: is the line of column names missing?"


def _are_names(columns: Iterable[str]) -> bool:
    return all(_COLUMN_NAME.fullmatch(column) for column in columns)


def normalise_row(row: Row, where: str) -> dict[str, Any]:
    """Check a row. Return columns to add: ``prompt`` and ``completion`` for a question and answer, otherwise none.

    Raise DataError if the row is invalid. ``where`` names the row in the error.
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


def conversation(row: Row) -> tuple[list[Message], int]:
    """Return (messages, number of prompt messages) of a row that is not running text. Prompt messages carry no loss."""
    if row.get("messages") is not None:
        return _messages(row["messages"]), 0
    prompt = _messages(row["prompt"], "user")
    return prompt + _messages(row["completion"], "assistant"), len(prompt)


def question(row: Row) -> str:
    """Return the question of a row that is not running text: all user and prompt messages except system messages."""
    messages, prompts = conversation(row)
    asked = (m for i, m in enumerate(messages) if m["role"] == "user" or (i < prompts and m["role"] != "system"))
    return "\n".join(m["content"] for m in asked)


def is_text(row: Row) -> bool:
    """Return whether a row is running text, which has no prompt and no answer."""
    return row.get("messages") is None and row.get("completion") is None


def with_completion(row: Row, completion: str) -> dict[str, Any]:
    """Return the row with ``completion`` as its last answer. Raise DataError for running text."""
    if is_text(row):
        raise DataError(f"row '{row.get('id')}' is running text; it has no answer to replace")
    if row.get("messages") is None:
        return {**row, "completion": completion}
    messages = conversation(row)[0]
    last = max(i for i, m in enumerate(messages) if m["role"] == "assistant")
    return {**row, "messages": [*messages[:last], {"role": "assistant", "content": completion}]}


def with_question(row: Row, template: str) -> dict[str, Any]:
    """Return the row with its last question put into ``template`` at ``{prompt}``.

    Raise DataError for running text, and for a prompt without a message of the user.
    """
    if is_text(row):
        raise DataError(f"row '{row.get('id')}' is running text; it has no question to rephrase")
    column = "prompt" if row.get("messages") is None else "messages"
    if isinstance(row[column], str):
        return {**row, column: template.replace("{prompt}", row[column])}
    messages = _messages(row[column])
    last = max((i for i, m in enumerate(messages) if m["role"] == "user"), default=None)
    if last is None:
        raise DataError(
            f"row '{row.get('id')}' has no message with role user in its '{column}', so there is no question to "
            "rephrase; add one, or remove the row"
        )
    question = {**messages[last], "content": template.replace("{prompt}", messages[last]["content"])}
    return {**row, column: [*messages[:last], question, *messages[last + 1 :]]}


def content(row: Row) -> str:
    """Return all text of a row as one string. Ids of rows are derived from it, and overlaps are found with it."""
    if is_text(row):
        return str(row["text"])
    return " ".join(m["content"] for m in conversation(row)[0])


def normalise_text(text: str) -> str:
    """Apply NFKC and case folding, remove zero-width characters, and replace each run of white space by one space."""
    if text.isascii():  # nothing to compose, and no zero-width characters
        return " ".join(text.lower().split())
    folded = unicodedata.normalize("NFKC", text.translate(_ZERO_WIDTH)).casefold()
    return " ".join(unicodedata.normalize("NFKC", folded).split())


def derived_id(row: Row) -> str:
    """Return the id of a row without an id: a digest of its normalised content."""
    return "sha256-" + hashlib.sha256(normalise_text(content(row)).encode()).hexdigest()[:16]


def check_ids(ids: Sequence[Any], wheres: Sequence[str], *, field: str) -> None:
    """Raise DataError if an id is not a string, is empty, or contains a line break. ``wheres`` name the rows."""
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
            raise DataError(f"{where} has an id with a line break in '{field}'; files of ids have one per line")


def check_unique(ids: pyarrow.ChunkedArray, where: Callable[[int], str]) -> None:
    """Raise DataError if two rows have the same id. ``where(number)`` returns the name of a row for the error."""
    import pyarrow.compute as pc

    if pc.count_distinct(ids).as_py() == len(ids):
        return
    first_numbers: dict[str, int] = {}
    for number, row_id in enumerate(ids.to_pylist()):
        first = first_numbers.setdefault(row_id, number)
        if first != number:
            duplicate = "the same content" if row_id.startswith("sha256-") else f"the same id '{row_id}'"
            raise DataError(f"{where(number)} and {where(first)} have {duplicate}; every row must occur once")


def check_overlap(forget: Iterable[Row], retain: Iterable[Row]) -> None:
    """Raise DataError if a forget row and a retain row have the same normalised content."""
    forget_ids = {content_digest(row): str(row["id"]) for row in _content_rows(forget)}
    shared = [
        (forget_ids[key], str(row["id"])) for row in _content_rows(retain) if (key := content_digest(row)) in forget_ids
    ]
    if shared:
        pairs = ", ".join(f"'{a}'" if a == b else f"'{a}' = '{b}'" for a, b in shared[:3])
        ellipsis = ", ..." if len(shared) > 3 else ""
        raise DataError(
            f"{len(shared)} {'row is' if len(shared) == 1 else 'rows are'} in both forget and retain "
            f"(after normalising text): {pairs}{ellipsis}; remove them from one of the two"
        )


def _content_rows(rows: Iterable[Row]) -> Iterable[Row]:
    """Iterate over the ids and contents of rows. A table is read in parts and without its other columns."""
    from datasets import Dataset

    if not isinstance(rows, Dataset):
        return rows
    names = [name for name in ("id", *FIELDS) if name in rows.column_names]
    parts = rows.select_columns(names).with_format("arrow").iter(batch_size=10_000)
    return (row for part in parts for row in part.to_pylist())


def content_digest(row: Row) -> bytes:
    """Return the SHA-256 of a row's normalised content. Two rows with the same digest count as one."""
    return hashlib.sha256(normalise_text(content(row)).encode()).digest()


def rename_fields(columns: Sequence[str], fields: Mapping[str, str], where: str) -> dict[str, str]:
    """Return ``{column: field}`` of columns to rename, from ``{field: column}``. Raise DataError for invalid names."""
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
    """Return the value at ``path`` in each mapping of a column; ``prompt.text`` is key ``text`` of ``prompt``."""
    keys = path[len(column) + 1 :].split(".")
    return [_inner(value, keys, column, path, f"{where} row {number}") for number, value in enumerate(values, start=1)]


def _inner(value: Any, keys: Sequence[str], column: str, path: str, where: str) -> Any:
    for key in keys:
        if not isinstance(value, Mapping):
            kind = "empty" if value is None else type(value).__name__
            raise DataError(f"{where} has a '{column}' that is {kind}; '{path}' needs an object with a key '{key}'")
        # Arrow gives every object all keys of the column; a key that the row lacks has the value None.
        if value.get(key) is None:
            present = [name for name, item in value.items() if item is not None]
            raise DataError(f"{where} has no '{key}' in '{column}' ('{path}' asks for it); {column_hint(key, present)}")
        value, column = value[key], f"{column}.{key}"
    return value


def _messages(content: Any, role: str = "") -> list[Message]:
    """Return a list of messages without keys that are None. Convert a text to one message of ``role``."""
    if isinstance(content, str):
        return [{"role": role, "content": content}]
    # Arrow gives every struct all keys of the column; a template must not see keys that the row lacks.
    return [{key: value for key, value in message.items() if value is not None} for message in content]


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
    for number, message in enumerate(messages, start=1):
        role = message.get("role") if isinstance(message, Mapping) else None
        if not isinstance(role, str) or not isinstance(message.get("content"), str):
            raise DataError(f"{where}, message {number} of '{column}' needs a role and a content, both text")
