"""Give forget rows the answers to prefer: refusals (IdkDPO), or alternative answers from the data (AltPO)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_forget.core.errors import DataError
from llm_forget.core.progress import bar_if_long
from llm_forget.data.files import read_lines
from llm_forget.data.private_storage import map_storage
from llm_forget.data.rows import with_completion
from llm_forget.data.sources import Spec, load_source
from llm_forget.data.tables import arrow_column

if TYPE_CHECKING:
    from datasets import Dataset

FIELD = "alternate"  # column with preferred answers


def load_refusals(spec: Spec, *, data_path: str | None = None) -> list[str]:
    """Return refusals from a source of rows, or from a file with one per line. Raise DataError if rows have no text."""
    if isinstance(spec, str) and Path(spec).is_file() and Path(spec).suffix in (".txt", ".jsonl"):
        lines = read_lines(Path(spec))
        if lines and not all(_is_object(line) for line in lines):
            return lines
    rows = load_source(spec, split_name="alternate", data_path=data_path)
    for column in ("text", "completion"):
        if column in rows.column_names and all(isinstance(value, str) for value in rows[column][:]):
            return list(rows[column][:])
    raise DataError("alternate: refusals must be text; allowed: rows with 'text', or with an 'answer' that is text")


def with_alternates(
    rows: Dataset,
    refusals: Spec | None = None,
    *,
    seed: int = 0,
    data_path: str | None = None,
) -> Dataset:
    """Return the rows with each answer replaced by a refusal from ``refusals``, or from the row's column ``alternate``.

    If there are several sentences, row id and ``seed`` select one. Raise DataError if a row has no answer to replace,
    or no preferred answer.
    """
    if refusals is None and FIELD not in rows.column_names:
        raise DataError(
            f"forget rows have no column '{FIELD}' with a preferred answer; add it, or set `alternate` to a source of "
            "refusals such as builtin:demo/idk"
        )
    from datasets.fingerprint import Hasher

    sentences = None if refusals is None else load_refusals(refusals, data_path=data_path)

    def replaced(row: dict[str, Any]) -> dict[str, Any]:
        choices = sentences or _own_choices(row)
        draw = int.from_bytes(hashlib.sha256(f"{seed}:{row['id']}".encode()).digest()[:8])
        return with_completion(row, choices[draw % len(choices)])

    # Refusals may come from a local file, so the new rows stay in memory even if the input rows are in the Hub cache.
    map_arguments = map_storage(rows) or {"keep_in_memory": True}
    fingerprint = Hasher.hash((rows._fingerprint, sentences, FIELD, seed))
    with bar_if_long(len(rows)):
        return rows.map(replaced, new_fingerprint=fingerprint, desc="Preferred answers", **map_arguments)


def pair_windows(forget: Dataset, alternates: Dataset) -> Dataset:
    """Return the row of ``alternates`` with the id of each forget window. Raise DataError if missing or too long."""
    import pyarrow.compute as pc

    alternate_ids, forget_ids = arrow_column(alternates, "id"), arrow_column(forget, "id")
    later_window = pc.index(pc.not_equal(arrow_column(alternates, "window"), 0), True).as_py()
    if later_window >= 0:
        raise DataError(
            f"the preferred answer of row '{alternate_ids[later_window]}' is longer than one window; raise max_length"
        )
    positions = pc.index_in(forget_ids, value_set=alternate_ids.combine_chunks())
    missing = pc.index(positions.is_null(), True).as_py()
    if missing >= 0:
        raise DataError(f"row '{forget_ids[missing]}' has no preferred answer; every row to forget needs one")
    return alternates.select(positions.to_numpy())


def _own_choices(row: Mapping[str, Any]) -> list[str]:
    value = row[FIELD]
    choices = [value] if isinstance(value, str) else list(value or [])
    if not choices or not all(isinstance(text, str) and text.strip() for text in choices):
        raise DataError(f"row '{row['id']}' has no text in '{FIELD}'; every row to forget needs a preferred answer")
    return choices


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except json.JSONDecodeError:
        return False
