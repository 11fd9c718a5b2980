"""Describe the rows of a run for provenance.json: their number, digest, ids and subjects, but never their text.

A subject is the person that a row is about. The file is private to the run and is never published, because ids and
subjects are often names. If a split has more than `LISTED` rows, its ids are in a file in the folder `ROW_IDS`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from llm_forget.core.files import write_atomic
from llm_forget.core.run_directory import Run
from llm_forget.data.digest import id_lines, tokens_digest, unique_ids
from llm_forget.data.tables import arrow_column, is_text_type

if TYPE_CHECKING:
    import pyarrow
    from datasets import Dataset

LISTED = 10_000
ROW_IDS = "row_ids"
SUBJECT = "subject"  # the column with the person a row is about; deletion requests read it


def row_subjects(rows: Dataset) -> Dataset | None:
    """Return a table of the ids and subjects of loaded rows, or None if no row has a subject that is a string."""
    if SUBJECT not in rows.column_names:
        return None
    column = arrow_column(rows, SUBJECT)
    return (
        rows.select_columns(["id", SUBJECT]) if is_text_type(column.type) and column.null_count < len(column) else None
    )


def describe(name: str, rows: Dataset, subject_table: Dataset | None = None) -> dict[str, Any]:
    """Describe the tokenised rows of a split. ``subject_table`` is the result of `row_subjects` for the original rows.

    Return ``rows`` (their number), ``digest``, and either ``ids`` and ``subjects`` (None for a row without a subject),
    or ``ids_file`` and ``subjects_file``, which `write_lists` writes.
    """
    ids, facts = unique_ids(rows), {"rows": len(rows), "digest": tokens_digest(rows)}
    subjects = _subjects(ids, subject_table)
    if len(ids) <= LISTED:
        subject_facts = {} if subjects is None else {"subjects": subjects.to_pylist()}
        return {**facts, "ids": ids.to_pylist(), **subject_facts}
    files = {"ids_file": (f"{name}.txt", id_lines(ids))}
    if subjects is not None:
        files["subjects_file"] = (f"{name}.subjects.jsonl", _subject_lines(subjects))
    for key, (file, content) in files.items():
        digest = "sha256:" + hashlib.sha256(content).hexdigest()
        facts[key] = {"name": f"{ROW_IDS}/{file}", "ids": len(ids), "digest": digest}
    return facts


def write_lists(
    run: Run, facts: Mapping[str, Any], splits: Mapping[str, Dataset], subject_tables: Mapping[str, Dataset | None]
) -> None:
    """Write the files that `describe` names. Only their owner can read the files of subjects."""
    for name, split_facts in facts.items():
        ids = unique_ids(splits[name])
        if "ids_file" in split_facts:
            write_atomic(run.path / split_facts["ids_file"]["name"], id_lines(ids))
        if "subjects_file" in split_facts:
            path = run.path / split_facts["subjects_file"]["name"]
            write_atomic(path, _subject_lines(_subjects(ids, subject_tables[name])), private=True)


def _subjects(ids: pyarrow.Array, subject_table: Dataset | None) -> pyarrow.Array | None:
    """Return the subject of each id, null for an id without a subject; return None if there is no table."""
    import pyarrow
    import pyarrow.compute as pc

    if subject_table is None:
        return None
    texts = pyarrow.large_string()
    columns = [arrow_column(subject_table, name).cast(texts).combine_chunks() for name in ("id", SUBJECT)]
    return columns[1].take(pc.index_in(ids.cast(texts), value_set=columns[0]))


def _subject_lines(subjects: Any) -> bytes:
    """Return the subjects as lines of JSON, because a subject may contain line breaks."""
    return b"".join(json.dumps(subject.as_py()).encode() + b"\n" for subject in subjects)
