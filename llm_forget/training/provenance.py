"""What provenance.json says about rows: how many, their digest, their ids and whose they are; never what they say.

It is private to the run and never published: ids and subjects are often names. Up to `LISTED` ids of a split stand in
it, more are listed in files of `ROW_IDS`, one a line in the order of the rows.
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
SUBJECT = "subject"  # the column that says whose a row is, as deletion requests read it


def owners(rows: Dataset) -> Dataset | None:
    """Id and subject of rows as they were loaded; None where no row has a subject that is text."""
    if SUBJECT not in rows.column_names:
        return None
    column = arrow_column(rows, SUBJECT)
    return (
        rows.select_columns(["id", SUBJECT]) if is_text_type(column.type) and column.null_count < len(column) else None
    )


def describe(name: str, rows: Dataset, owned: Dataset | None = None) -> dict[str, Any]:
    """Number, digest, ids and subjects of tokenised rows of a split.

    Args:
        name: of the split.
        rows: tokenised.
        owned: what `owners` gave for them before.

    Returns:
        ``rows``, ``digest``, and either ``ids`` with ``subjects`` beside them (None for a row without), or ``ids_file``
        and ``subjects_file``, which `write_lists` writes.
    """
    ids, facts = unique_ids(rows), {"rows": len(rows), "digest": tokens_digest(rows)}
    subjects = _subjects(ids, owned)
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
    run: Run, facts: Mapping[str, Any], splits: Mapping[str, Dataset], owned: Mapping[str, Dataset | None]
) -> None:
    """Write the files that `describe` names; only their owner may read who is named in them."""
    for name, split_facts in facts.items():
        ids = unique_ids(splits[name])
        if "ids_file" in split_facts:
            write_atomic(run.path / split_facts["ids_file"]["name"], id_lines(ids))
        if "subjects_file" in split_facts:
            path = run.path / split_facts["subjects_file"]["name"]
            write_atomic(path, _subject_lines(_subjects(ids, owned[name])))
            path.chmod(0o600)


def _subjects(ids: pyarrow.Array, owned: Dataset | None) -> pyarrow.Array | None:
    """The subject of each id, null where it has none."""
    import pyarrow
    import pyarrow.compute as pc

    if owned is None:
        return None
    texts = pyarrow.large_string()
    columns = [arrow_column(owned, name).cast(texts).combine_chunks() for name in ("id", SUBJECT)]
    return columns[1].take(pc.index_in(ids.cast(texts), value_set=columns[0]))


def _subject_lines(subjects: Any) -> bytes:
    """One JSON text or null a line: a subject may hold what ends a line."""
    return b"".join(json.dumps(subject.as_py()).encode() + b"\n" for subject in subjects)
