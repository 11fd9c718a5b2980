"""Write TOFU again with the author of each row, ``python recipes/tables/author_rows.py DATA_PATH FOLDER``.

TOFU has 20 rows of an author in succession, and no column that names the author. With the columns ``subject`` and
``subject_name``, intervals resample authors, and the teacher ``stranger`` knows which name to replace.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from llm_forget.core.errors import DataError, MissingFileError
from llm_forget.core.files import write_atomic
from llm_forget.data.files import read_file

ROWS_PER_AUTHOR = 20
BY_AUTHOR = ("forget05", "forget05_perturbed", "forget10", "retain_perturbed")
UNCHANGED = ("real_authors_perturbed", "world_facts_perturbed")
SHARE = 0.8  # of an author's rows that must contain the name
# Two or more capitalised words: Hina Ameen, Moshe Ben-David.
_SPAN = re.compile(r"\b[A-ZÀ-ÖØ-Þ][\w-]*(?: [A-ZÀ-ÖØ-Þ][\w-]*)+")

Rows = list[dict[str, Any]]


def author_name(rows: Sequence[dict[str, Any]]) -> str:
    """Return the longest run of two or more capitalised words that at least `SHARE` of an author's rows contain.

    Raises DataError if there is none.
    """
    counts = Counter(run for row in rows for run in set(_runs(f"{row['question']} {row['answer']}")))
    names = [run for run, count in counts.items() if count >= SHARE * len(rows)]
    if not names:
        raise DataError(f"no name is in {SHARE:.0%} of the rows of an author; are these {ROWS_PER_AUTHOR} rows each?")
    return max(names, key=lambda name: (len(name), name))


def _runs(text: str) -> Iterator[str]:
    for span in _SPAN.findall(text):
        words = span.split(" ")
        yield from (" ".join(words[i:j]) for i in range(len(words)) for j in range(i + 2, len(words) + 1))


def with_authors(rows: Rows, prefix: str) -> Rows:
    """Return the rows with the columns ``subject``, such as ``forget05-3``, and ``subject_name``."""
    named: Rows = []
    for start in range(0, len(rows), ROWS_PER_AUTHOR):
        part = rows[start : start + ROWS_PER_AUTHOR]
        author = {"subject": f"{prefix}-{start // ROWS_PER_AUTHOR}", "subject_name": author_name(part)}
        named += [{**row, **author} for row in part]
    return named


def write_author_rows(data_path: Path, folder: Path) -> Path:
    """Write the files of TOFU that the recipes of five authors read into ``folder``, and return it."""
    for name in (*BY_AUTHOR, *UNCHANGED):
        rows = _read(data_path, name)
        rows = with_authors(rows, name.removesuffix("_perturbed")) if name in BY_AUTHOR else rows
        write_rows(folder / f"{name}.jsonl", rows)
    return folder


def write_rows(file: Path, rows: Rows) -> None:
    """Write rows as JSON Lines that only their owner can read."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), private=True)


def _read(data_path: Path, name: str) -> Rows:
    for file in (data_path / f"{name}.jsonl", data_path / f"{name}.json"):
        if file.is_file():
            return list(read_file(file))
    raise MissingFileError(f"'{data_path}' has no file {name}.json; give the folder of TOFU's files as --data_path")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data_path", type=Path)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    write_author_rows(options.data_path, options.folder)
