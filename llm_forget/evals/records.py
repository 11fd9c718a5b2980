"""Read and write record files of probes: a header line, then one JSON line for each answer of each row.

The header is ``{"format", "kind", "key", "lines"}``; ``key`` is a digest of all inputs. Records stay in the run and are
never published, because generated text may repeat a forget row verbatim. Reference answers are read from the data and
never stored in records.

Process 0 appends records to ``<name>.partial`` and every other process to ``<name>.<rank>.partial``, so a killed
evaluation can resume with any number of processes. A file with fewer lines than its header states is incomplete; the
next evaluation reads its records and measures the others.
"""

from __future__ import annotations

import glob
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TextIO, TypeVar

import numpy as np
from numpy.typing import NDArray

from llm_forget.core import formats
from llm_forget.core.errors import EvaluationError
from llm_forget.core.formats.results import RecordsHeader
from llm_forget.evals.distributions import Distributions

if TYPE_CHECKING:
    from llm_forget.evals.probes.answer_words import AnswerWords

Key = tuple[str, int]  # row id, index of the answer


class Record(Protocol):
    """The interface that all kinds of records have."""

    @property
    def key(self) -> Key: ...

    @property
    def broken(self) -> bool: ...

    @property
    def subject(self) -> str | None: ...

    def to_dict(self) -> dict[str, Any]: ...


AnyRecord = TypeVar("AnyRecord", bound=Record)


def _nothing() -> NDArray[np.float32]:
    return np.zeros(0, dtype=np.float32)


@dataclass(frozen=True)
class TokenRecord:
    """The numbers of one answer under teacher forcing. The last three fields come from the data, never from disk."""

    id: str
    answer_index: int
    logps: NDArray[np.float32]  # [n] log-prob of each target token, nats
    hits: NDArray[np.bool_]  # [n] whether the target token is the most likely one
    means: NDArray[np.float32] = field(
        default_factory=_nothing
    )  # [n] mean of log p(v) over the vocabulary, weighted by p(v): the negative entropy; nats
    variances: NDArray[np.float32] = field(default_factory=_nothing)  # [n] variance of log p(v), weighted by p(v)
    top: Distributions | None = None  # most likely tokens at each target; None if the probe does not store them
    zlib_bytes: int = 0  # size of the zlib-compressed answer; 0 if not filled in
    answer: AnswerWords | None = field(default=None, compare=False)  # words of the target tokens; None if not filled in
    subject: str | None = field(default=None, compare=False)  # column `subject` of the row

    @property
    def key(self) -> Key:
        return self.id, self.answer_index

    @property
    def n(self) -> int:
        """Number of target tokens."""
        return len(self.logps)

    @property
    def broken(self) -> bool:
        """Whether a log-prob is NaN. The hits are then meaningless too."""
        return bool(np.isnan(self.logps).any())

    def to_dict(self) -> dict[str, Any]:
        """Return the record for JSON. A float32 becomes the shortest decimal that reads back as the same float32."""
        content = {
            "id": self.id,
            "answer_index": self.answer_index,
            "logps": _shortest(self.logps),
            "hits": [int(hit) for hit in self.hits],
            "means": _shortest(self.means),
            "variances": _shortest(self.variances),
            "n": self.n,
        }
        return content if self.top is None else {**content, "top": self.top.to_dict()}

    @classmethod
    def from_dict(cls, line: dict[str, Any]) -> TokenRecord:
        """Make a record from the output of `to_dict`."""
        logps, means, variances = (np.asarray(line[k], dtype=np.float32) for k in ("logps", "means", "variances"))
        hits = np.asarray(line["hits"], dtype=np.bool_)
        top = Distributions.from_dict(line["top"]) if "top" in line else None
        return cls(line["id"], line["answer_index"], logps, hits, means, variances, top)


@dataclass(frozen=True)
class GenerationRecord:
    """One generated text. ``reference``, ``columns`` and ``subject`` come from the data, never from a record file."""

    id: str
    sample: int
    text: str
    n: int  # number of generated tokens
    reference: str = ""
    broken: bool = False  # the logits of a token were NaN or infinite; the text is then empty
    columns: Mapping[str, Any] = field(default_factory=dict, compare=False)  # columns of the row that are not tokens
    subject: str | None = field(default=None, compare=False)  # column `subject` of the row

    @property
    def key(self) -> Key:
        return self.id, self.sample

    def to_dict(self) -> dict[str, Any]:
        """Return the record for JSON, without the fields from the data. ``broken`` is present only if true."""
        content = {"id": self.id, "sample": self.sample, "text": self.text, "n": self.n}
        return {**content, "broken": True} if self.broken else content

    @classmethod
    def from_dict(cls, line: dict[str, Any]) -> GenerationRecord:
        """Make a record from the output of `to_dict`."""
        return cls(line["id"], line["sample"], line["text"], line["n"], broken=line.get("broken", False))


@dataclass(frozen=True)
class GradientRecord:
    """The gradient norms of one answer. ``subject`` comes from the data, never from a record file."""

    id: str
    answer_index: int
    norms: dict[str, float]  # p ("1", "2" or "inf") -> p-norm of the gradient of the mean token NLL (`probe_gradients`)
    subject: str | None = field(default=None, compare=False)  # column `subject` of the row

    @property
    def key(self) -> Key:
        return self.id, self.answer_index

    @property
    def broken(self) -> bool:
        """Whether a norm is NaN."""
        return any(math.isnan(norm) for norm in self.norms.values())

    def to_dict(self) -> dict[str, Any]:
        """Return the record for JSON."""
        return {"id": self.id, "answer_index": self.answer_index, "norms": self.norms}

    @classmethod
    def from_dict(cls, line: dict[str, Any]) -> GradientRecord:
        """Make a record from the output of `to_dict`."""
        return cls(line["id"], line["answer_index"], line["norms"])


KINDS: dict[str, type[TokenRecord] | type[GenerationRecord] | type[GradientRecord]] = {
    "logprobs": TokenRecord,
    "generate": GenerationRecord,
    "gradients": GradientRecord,
}


def by_row(records: Iterable[AnyRecord]) -> dict[str, list[AnyRecord]]:
    """Group records by row id. The ids are in the order of first appearance."""
    rows: dict[str, list[AnyRecord]] = {}
    for record in records:
        rows.setdefault(record.key[0], []).append(record)
    return rows


def row_subjects(records: Iterable[Record]) -> list[str]:
    """Return the subject of each row, ``[N]``, in the order of `by_row`; the row id if a row has no subject."""
    return [answers[0].subject or row for row, answers in by_row(records).items()]


def row_means(
    records: Iterable[AnyRecord],
    score: Callable[[AnyRecord], float],
    over: Callable[[NDArray[np.float64]], np.float64] = np.mean,
) -> NDArray[np.float64]:
    """Return one value per row, ``[N]``: the mean (or ``over``) of ``score`` over the records of the row.

    NaN scores and broken records are left out. A row without any other score gets NaN.
    """
    rows = [np.array([np.nan if r.broken else score(r) for r in answers]) for answers in by_row(records).values()]
    return np.array([over(r[~np.isnan(r)]) if not np.isnan(r).all() else np.nan for r in rows], dtype=np.float64)


def aligned(left: Iterable[AnyRecord], right: Iterable[AnyRecord]) -> list[tuple[list[AnyRecord], list[AnyRecord]]]:
    """Pair the records of two probes by row id. Raise EvaluationError if the probes do not have the same row ids."""
    left_rows, right_rows = by_row(left), by_row(right)
    if left_rows.keys() != right_rows.keys():
        unpaired = sorted(left_rows.keys() ^ right_rows.keys())
        raise EvaluationError(
            f"two probes of one metric must cover the same rows, but {len(unpaired)} ids are in only one of them "
            f"(first: {unpaired[0]}); give both the same split, limit and seed"
        )
    return [(left_rows[row], right_rows[row]) for row in left_rows]


def load_records(path: Path, key: str | None = None, *, kind: str | None = None) -> list[Any] | None:
    """Read a complete record file. Return None if it is missing or incomplete, or if its key or kind differs."""
    announced, records = _read(path, key, kind)
    return records if len(records) == announced else None


def write_records(path: Path, kind: str, key: str, records: Sequence[Record]) -> None:
    """Write a complete record file atomically. Only the user who owns the file can read it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _replace(path, _header(kind, key, len(records)), records)


class RecordWriter:
    """Collects the records of one probe in memory and on disk, so that a killed evaluation can resume.

    ``expected`` lists the record keys in the order of the finished file. Each process has its own writer, with its
    ``rank`` and its share of the keys (`restrict_to`). At the end, the records of the other processes are passed to
    `add`, and one process calls `finish`. Two evaluations may measure the same probe at once.
    """

    def __init__(self, path: Path, kind: str, key: str, expected: Sequence[Key], *, rank: int = 0) -> None:
        self.path, self.kind, self.key = path, kind, key
        self.partial = path.with_name(f"{path.name}.{rank}.partial" if rank else f"{path.name}.partial")
        self._expected = list(expected)
        self._share: set[Key] | None = None
        self._own: list[Record] = []
        self._records: dict[Key, Record] = {}
        for source in (path, *_partials(path)):
            self.add(self._usable(source))
        path.parent.mkdir(parents=True, exist_ok=True)
        # Rewrite the file: after a kill, its last line may be cut off, and an appended line would join it.
        _replace(self.partial, _header(kind, key, len(self._expected)), self._usable(self.partial))

    def _usable(self, source: Path) -> list[Any]:
        expected = set(self._expected)
        return [record for record in _read(source, self.key, self.kind)[1] if record.key in expected]

    def restrict_to(self, share: Iterable[Key]) -> None:
        """Let this process measure only the given keys; the other processes measure the rest."""
        self._share = set(share)

    def missing(self) -> set[Key]:
        """Return the record keys that this process must still measure."""
        left = set(self._expected) - self._records.keys()
        return left if self._share is None else left & self._share

    def available(self) -> list[Any]:
        """Return all records so far, whether read from disk, measured, or added from other processes."""
        return list(self._records.values())

    def measured(self) -> list[Any]:
        """Return the records that this process has measured."""
        return list(self._own)

    def append(self, records: Iterable[Record]) -> None:
        """Add records that this process has measured, and write them to disk at once."""
        new = list(records)
        with _open_private(self.partial, "a") as file:
            file.writelines(_line(record.to_dict()) for record in new)
        self._own += new
        self.add(new)

    def add(self, records: Iterable[Record]) -> None:
        """Add records that are already on disk, such as those of another process."""
        self._records.update({record.key: record for record in records})

    def ordered(self) -> list[Any]:
        """Return all records in the order of ``expected``. Raise KeyError if one is missing."""
        return [self._records[key] for key in self._expected]

    def finish(self) -> list[Any]:
        """Write the complete file, delete the partial files, and return the records in the order of ``expected``."""
        ordered = self.ordered()
        write_records(self.path, self.kind, self.key, ordered)
        self.clear()
        return ordered

    def clear(self) -> None:
        """Delete the partial files of all processes. Call this only after the complete file is written."""
        for partial in _partials(self.path):
            partial.unlink(missing_ok=True)


def _partials(path: Path) -> list[Path]:
    """Return the partial files that the processes wrote for a record file."""
    return sorted(path.parent.glob(f"{glob.escape(path.name)}.*partial"))


def _replace(path: Path, header: dict[str, Any], records: Iterable[Record]) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with _open_private(temporary, "w") as file:
            file.write(_line(header))
            file.writelines(_line(record.to_dict()) for record in records)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _shortest(values: NDArray[np.float32]) -> list[float]:
    return [float(str(value)) for value in values]


def _header(kind: str, key: str, lines: int) -> dict[str, Any]:
    return {"format": RecordsHeader.FORMAT, "kind": kind, "key": key, "lines": lines}


def _line(content: dict[str, Any]) -> str:
    return json.dumps(content, ensure_ascii=False) + "\n"


def _open_private(path: Path, mode: Literal["w", "a"]) -> TextIO:
    flags = os.O_WRONLY | os.O_CREAT | (os.O_TRUNC if mode == "w" else os.O_APPEND)
    return os.fdopen(os.open(path, flags, 0o600), mode, encoding="utf-8")


def _read(path: Path, key: str | None, kind: str | None) -> tuple[int | None, list[Any]]:
    """Return the number of records that the header states, and the records; (None, []) if key or kind differs."""
    if not path.exists():
        return None, []
    with open(path, "rb") as file:
        header = next(formats.whole_lines([file.readline()], RecordsHeader), None)
        if header is None or key not in (None, header["key"]) or kind not in (None, header["kind"]):
            return None, []
        make = KINDS[header["kind"]].from_dict
        return header["lines"], [make(line) for line in formats.whole_lines(file) if "id" in line]
