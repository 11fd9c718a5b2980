"""Add rows to the forget rows with the recipe key ``augment``: the same facts in other questions (arXiv:2607.09236).

Added rows are as private as the forget rows: only their ids and numbers are logged or recorded. Evaluation, ledger and
deletion requests use only the user's own rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from accelerate import PartialState

from llm_forget.core.config import DataConfig
from llm_forget.core.errors import ConfigError, DataError
from llm_forget.data.augmentations import AUGMENTATIONS
from llm_forget.data.digest import tokens_digest
from llm_forget.data.names import TEXT_COLUMNS, find_names
from llm_forget.data.rows import Row, check_overlap, content_digest
from llm_forget.data.sources import load_source
from llm_forget.data.template import Template
from llm_forget.data.tokenise import tokenise_rows
from llm_forget.training.provenance import LISTED, SUBJECT

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

NAMES = "subject_name"  # column with the name that a row uses for its subject
NUMBERED = 10  # maximum number of rows that a log line lists


@dataclass(frozen=True)
class Augment:
    """The parsed value of the recipe key ``augment``."""

    kinds: dict[str, dict[str, Any]]  # augmentation -> its arguments
    names: str = NAMES  # column with the name of a row's subject


@dataclass(frozen=True)
class Augmentation:
    """The rows that were added to the forget rows, with facts for provenance.json."""

    rows: list[Row]
    tokens: Dataset  # the same rows, tokenised
    ids: dict[str, list[str]]  # augmentation -> ids of its rows
    without: dict[str, list[int]]  # augmentation -> numbers (from 1) of forget rows for which it made no row
    repeated: int = 0  # rows left out, since a forget row or an earlier added row has the same content

    def to_dict(self) -> dict[str, Any]:
        """Return the value of the key ``augmentation`` in provenance.json."""
        kinds = {
            name: {"rows": len(ids), "without": self.without[name], **({"ids": ids} if len(ids) <= LISTED else {})}
            for name, ids in self.ids.items()
        }
        return {"rows": len(self.rows), "digest": tokens_digest(self.tokens), "kinds": kinds}

    def statement(self) -> str:
        """Return a log line: the number of rows of each augmentation, and the forget rows for which it made none."""
        counts = ", ".join(f"{len(ids):,} {name}" for name, ids in self.ids.items())
        skipped = [
            f"no {name} of forget row {_listed(numbers)}, since a row needs {AUGMENTATIONS.get(name).needs_of_row}"
            for name, numbers in self.without.items()
            if numbers
        ]
        repeated = f"{self.repeated:,} left out that forget has already" if self.repeated else ""
        return "; ".join(filter(None, [f"added to forget: {counts}", repeated, *skipped]))


def augment_spec(value: Any, teacher_names: str | None = None) -> Augment | None:
    """Parse the recipe key ``augment``, such as ``{reverse: true, paraphrase: 2, alias: {column: aliases}}``.

    ``teacher_names`` is the column in which the teacher finds names, if it needs them; the added rows have this column.
    Return None if ``augment`` is not set. Raise ConfigError for an unknown augmentation, an unsupported value, or
    another column than the teacher's.
    """
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise ConfigError("augment must be a mapping, as in {reverse: true, paraphrase: 2}")
    chosen = {name: part for name, part in value.items() if name != "names" and part is not False and part is not None}
    kinds = {str(name): AUGMENTATIONS.get(str(name)).arguments_of(part) for name, part in chosen.items()}
    if not kinds:
        raise ConfigError(f"augment names no augmentation; allowed: {', '.join(AUGMENTATIONS.names())}")
    column = str(value.get("names") or teacher_names or NAMES)
    if teacher_names not in (None, column):
        raise ConfigError(
            f"augment has the names '{column}', but the teacher has the names '{teacher_names}'; both must name one "
            "column, in which the teacher finds the names of the added rows"
        )
    return Augment(kinds, column)


def added_rows(
    augment: Augment, data: DataConfig, tokenizer: PreTrainedTokenizerBase, template: Template
) -> Augmentation:
    """Make and tokenise the rows that a recipe adds to its forget rows.

    Raises:
        DataError: an augmentation makes no row at all, or a new row has the id of a forget row or is a retain row.
        ConfigError: an augmentation does not support its argument.
    """
    with PartialState().main_process_first():  # the others read its rows from the cache
        forget, retain = (
            load_source(spec, split_name=split, data_path=data.data_path, fields=data.fields) if spec else []
            for split, spec in (("forget", data.forget), ("retain", data.retain))
        )
    rows, by_kind, without, repeated = augmented(list(forget), augment)
    _check_ids([str(row["id"]) for row in (*forget, *rows)])
    check_overlap(rows, retain)
    tokens = tokenise_rows(rows, tokenizer, template, max_length=data.max_length, stride=data.stride)
    return Augmentation(rows, tokens, by_kind, without, repeated)


def augmented(
    forget: Sequence[Row], augment: Augment
) -> tuple[list[Row], dict[str, list[str]], dict[str, list[int]], int]:
    """Return (added rows, their ids by augmentation, numbers of forget rows without an added row by augmentation,
    number of rows that were left out because a forget row or an earlier added row has the same content).

    The id of an added row is ``FORGET_ID~AUGMENTATION``, and ``-1``, ``-2`` ... for augmentations that make several.
    """
    names = find_names(forget, augment.names, parts=True)
    contents = {content_digest(row) for row in forget}
    rows: list[Row] = []
    repeated = 0
    ids: dict[str, list[str]] = {}
    without: dict[str, list[int]] = {}
    for kind, arguments in augment.kinds.items():
        entry, ids[kind], without[kind] = AUGMENTATIONS.get(kind), [], []
        for number, (row, name) in enumerate(zip(forget, names, strict=True), 1):
            made = list(entry.function(row, name, **arguments))
            marks = [kind] if entry.single else [f"{kind}-{i}" for i in range(1, len(made) + 1)]
            added = [
                _derived(row, columns, f"{row['id']}~{mark}", {augment.names: used} if used else {})
                for mark, (columns, used) in zip(marks, made, strict=False)
            ]
            new = _new_rows(added, contents)
            rows += new
            ids[kind] += [str(part["id"]) for part in new]
            without[kind] += [] if added else [number]
            repeated += len(added) - len(new)
        if len(without[kind]) == len(forget):
            raise DataError(
                f"augment: {kind} makes no row of any of the {len(forget)} forget rows, since a row needs "
                f"{entry.needs_of_row}; remove {kind}, or add what it needs"
            )
    if not rows:
        raise DataError("augment makes only rows that forget has already; remove augment")
    return rows, ids, without, repeated


def _new_rows(rows: Sequence[dict[str, Any]], contents: set[bytes]) -> list[dict[str, Any]]:
    """Return the rows whose content is not in ``contents``, and add it there."""
    new = []
    for row in rows:
        if (digest := content_digest(row)) not in contents:
            contents.add(digest)
            new.append(row)
    return new


def _derived(row: Row, columns: Row, row_id: str, name: Mapping[str, str]) -> dict[str, Any]:
    texts = {column: columns.get(column) for column in TEXT_COLUMNS}
    return {"id": row_id, **({SUBJECT: row[SUBJECT]} if SUBJECT in row else {}), **name, **texts}


def _check_ids(ids: Sequence[str]) -> None:
    repeated = next((row_id for row_id, count in Counter(ids).items() if count > 1), None)
    if repeated is not None:
        raise DataError(f"augment makes a row with the id '{repeated}' of a forget row; rename the forget row")


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:NUMBERED])) + (" ..." if len(numbers) > NUMBERED else "")
