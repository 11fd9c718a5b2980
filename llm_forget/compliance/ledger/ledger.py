"""``ledger.db``: a list of events about data and models, in which `verify` detects later changes.

The digest of an event covers its number, time, kind, body, and the digest of the event before it. The list is thus a
hash chain.

The ids of records are stored as keyed hashes (see `subject_keys`). `verify` checks the whole file, but by itself cannot
detect that the newest events were removed or that the whole list was replaced. The signed head that `anchor` writes
reveals both. Keep a copy of the signed head where the writers of the ledger have no access.

One process writes at a time (BEGIN IMMEDIATE). Events are ordered by number, not by time, since clocks can be set back.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain as chained
from pathlib import Path
from typing import Any

from llm_forget.compliance.ledger import chain, signed_head as signed, subject_keys
from llm_forget.compliance.ledger.chain import FILE, FORMAT, GENESIS, SCHEMA, Event
from llm_forget.compliance.ledger.sqlite_errors import translate_sqlite_errors
from llm_forget.core.errors import EvidenceBroken, EvidenceError
from llm_forget.core.registry import did_you_mean
from llm_forget.core.strict_json import canonical, strict_loads

KINDS = (
    "training", "request", "unlearning", "verification", "merge", "version", "publish", "rollback", "purge", "closed",
    "erasure",
)  # fmt: skip
RESERVED = ("once", "records")  # keys that `append` adds to a body
_NO_LEDGER = "there is no ledger in '{}'; create one with `llm-forget audit note RUN`"


class Ledger:
    """The open ledger of an evidence folder; a context manager. Do not share it between threads or forked processes."""

    def __init__(self, folder: Path, connection: sqlite3.Connection) -> None:
        self.folder = folder
        self.connection = connection
        self._keys = ""  # how keys.db is attached: "", "read" or "write"

    @classmethod
    def open(cls, folder: Path, *, create: bool = False) -> Ledger:
        """Open the ledger of a folder. If ``create``, create a missing folder (mode 0700) or ledger (mode 0600).

        Raises:
            EvidenceError: no ledger exists, or it has another format number.
            EvidenceBroken: the ledger is missing although a signed head exists, or the file is not a ledger.
            NoPermissionError: the ledger cannot be read or created.
        """
        path = folder / FILE
        exists = path.is_file() and path.stat().st_size > 0
        if not exists and (folder / signed.FILE).is_file():
            raise EvidenceBroken(f"'{path}' is missing or empty, but the signed head '{folder / signed.FILE}' exists")
        if not exists and not create:
            raise EvidenceError(_NO_LEDGER.format(folder))
        with translate_sqlite_errors(folder):
            if create:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                if not exists:
                    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
            ledger = cls(folder, chain.connect(path))
            try:
                ledger._prepare(create)
            except BaseException:
                ledger.close()
                raise
            return ledger

    def _prepare(self, create: bool) -> None:
        (format_number,) = self.connection.execute("PRAGMA user_version").fetchone()
        if format_number == 0 and create:
            with self._writing():
                if self.connection.execute("PRAGMA user_version").fetchone() == (0,):  # no other process created them
                    for statement in SCHEMA:
                        self.connection.execute(statement)
                    self.connection.execute(f"PRAGMA user_version = {FORMAT}")
        elif format_number == 0:
            raise EvidenceError(_NO_LEDGER.format(self.folder))
        elif format_number != FORMAT:
            raise EvidenceError(
                f"'{self.folder / FILE}' has format {format_number}; this version of llm-forget reads format {FORMAT}"
            )

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the database files."""
        self.connection.close()

    def append(
        self, kind: str, body: dict[str, Any], *, once: str | None = None, records: Iterable[tuple[str, str]] = ()
    ) -> Event:
        """Add an event, write it to disk and return it.

        Args:
            body: JSON object, without ids or text of rows.
            once: a digest that identifies the event. If an event of this kind has it already, that event is returned,
                and nothing is added.
            records: (subject, record id) pairs that the event is about. They are read in batches.

        Raises:
            EvidenceError: the kind is unknown, the body has a reserved key, or another process keeps the ledger locked.
            DataError: the body is not valid JSON.
            OSError: the disk is full or the file is not writable; nothing was added.
        """
        if kind not in KINDS:
            raise EvidenceError(f"'{kind}' is not a kind of event; {did_you_mean(kind, KINDS)}")
        if reserved := [key for key in RESERVED if key in body]:
            raise EvidenceError(f"the body of an event cannot hold '{reserved[0]}'; pass it as an argument")
        canonical(body)  # raises if the body is not JSON, before the ledger is locked
        pairs = iter(records)
        first = next(pairs, None)
        with self._writing(keyed=first is not None):
            if once is not None and (earlier := self._select("WHERE kind = ? AND once = ?", (kind, once))):
                return earlier[0]
            return self._add(kind, body, once, None if first is None else chained([first], pairs))

    def _add(self, kind: str, body: dict[str, Any], once: str | None, pairs: Iterable[tuple[str, str]] | None) -> Event:
        """Append an event inside the current transaction and return it."""
        last, previous = self.head()
        full_body = dict(body) if once is None else {**body, "once": once}
        if pairs is not None:
            full_body["records"] = self._note_records(last + 1, pairs)
        event = Event(last + 1, chain.now(), kind, full_body, previous, "")
        event = replace(event, digest=event.computed_digest())
        row = (event.seq, event.time, kind, canonical(full_body).decode(), previous, event.digest, once)
        self.connection.execute("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?)", row)
        return event

    def _note_records(self, seq: int, pairs: Iterable[tuple[str, str]]) -> dict[str, Any]:
        """Insert the distinct record hashes of an event and return their number and digest, see `records_digest`."""
        execute = self.connection.execute
        execute("CREATE TEMP TABLE IF NOT EXISTS incoming (subject BLOB, record BLOB, PRIMARY KEY (subject, record)) "
                "WITHOUT ROWID")  # fmt: skip
        execute("DELETE FROM incoming")
        self.connection.executemany(
            "INSERT OR IGNORE INTO incoming VALUES (?, ?)", subject_keys.hashes(self.connection, pairs)
        )
        execute("INSERT INTO records SELECT ?, subject, record FROM incoming ORDER BY subject, record", (seq,))
        execute("DELETE FROM incoming")
        return chain.records_digest(self.connection, seq)

    def events(self, *kinds: str) -> list[Event]:
        """Return all events, or those of the given kinds, in order."""
        marks = ",".join("?" * len(kinds))
        where = f"WHERE kind IN ({marks})" if kinds else ""
        return self._select(f"{where} ORDER BY seq", kinds)

    def about(self, subject: str, record: str | None = None) -> list[Event]:
        """Return the events about a subject, or about one of its records. If the subject has no key, return []."""
        with translate_sqlite_errors(self.folder):
            hashes = subject_keys.lookup(self.connection, subject, record) if self._attach(write=False) else None
        if hashes is None:
            return []
        where = "subject = ?" + (" AND record = ?" if record is not None else "")
        parameters = [value for value in hashes if value is not None]
        return self._select(f"WHERE seq IN (SELECT seq FROM records WHERE {where}) ORDER BY seq", parameters)

    def common_records(self, first: Sequence[int], second: Sequence[int]) -> set[str]:
        """Return the hashes of the records that are both in an event of ``first`` and in an event of ``second``."""
        same = "SELECT 1 FROM records AS b WHERE b.subject = a.subject AND b.record = a.record AND b.seq IN"
        query = (
            f"SELECT record FROM records AS a WHERE a.seq IN ({_numbers(first)}) "
            f"AND EXISTS ({same} ({_numbers(second)}))"
        )
        with translate_sqlite_errors(self.folder):
            return {record.hex() for (record,) in self.connection.execute(query)}

    def record_hashes(self, seqs: Sequence[int]) -> Iterator[str]:
        """Yield the distinct record hashes of the events with these numbers, as hex digits."""
        query = f"SELECT DISTINCT subject, record FROM records WHERE seq IN ({_numbers(seqs)}) ORDER BY subject, record"
        with translate_sqlite_errors(self.folder):
            for _, record in self.connection.execute(query):
                yield record.hex()

    def matching_ids(self, seqs: Sequence[int], records: Iterable[str]) -> set[str]:
        """Return those of the record ids that the given events are about. An id without a key never matches."""
        hashes = set(self.record_hashes(seqs))
        matching_ids = set()
        with translate_sqlite_errors(self.folder):
            if hashes and self._attach(write=False):
                for record in records:
                    hashed = subject_keys.lookup(self.connection, record, record)
                    if hashed is not None and hashed[1] is not None and hashed[1].hex() in hashes:
                        matching_ids.add(record)
        return matching_ids

    def has_unlinked_records(self, seq: int) -> bool:
        """Return whether the key of a record of an event was destroyed, but no closed request deleted the record."""
        deleted = "SELECT 1 FROM records AS b JOIN events ON events.seq = b.seq WHERE kind = 'closed'"
        query = (
            f"SELECT DISTINCT subject FROM records AS a WHERE seq = ? AND NOT EXISTS ({deleted} "
            "AND b.subject = a.subject AND b.record = a.record)"
        )
        with translate_sqlite_errors(self.folder):
            with_key = subject_keys.subjects_with_key(self.connection) if self._attach(write=False) else set()
            return any(subject not in with_key for (subject,) in self.connection.execute(query, (seq,)))

    def head(self) -> tuple[int, str]:
        """Return the number and digest of the newest event, or ``(0, GENESIS)`` if the ledger is empty."""
        with translate_sqlite_errors(self.folder):
            row = self.connection.execute("SELECT seq, digest FROM events ORDER BY seq DESC LIMIT 1").fetchone()
        return row or (0, GENESIS)

    def verify(self, anchor: Path | None = None, public: Path | None = None) -> tuple[int, str]:
        """Verify the whole ledger and its signed head, and return the number and digest of the newest event.

        ``anchor`` and ``public`` are copies of anchor.json and signing.pub that replace the files in the folder.
        Raises EvidenceBroken, which names the first changed or missing event, or MissingFileError for a missing copy.
        """
        return chain.verify(self.folder, signed.read(self.folder, anchor, public))

    def anchor(self) -> Path:
        """Verify the ledger, write its signed head to ``anchor.json``, and return the path."""
        return signed.write(self.folder, *self.verify())

    def destroy_keys(self, subjects: Iterable[str]) -> int:
        """Destroy the keys of subjects, so that no event can be linked to them. Return how many keys were destroyed.

        An ``erasure`` event records this number, unless it is 0. A backup of ``keys.db`` still has the keys.
        """
        with translate_sqlite_errors(self.folder):
            if not self._attach(write=False):
                return 0
        with self._writing(keyed=True):
            destroyed = subject_keys.destroy(self.connection, subjects)
            if destroyed:
                self._add("erasure", {"keys": destroyed}, None, None)
        with translate_sqlite_errors(self.folder):
            subject_keys.scrub(self.connection, self.folder)
        return destroyed

    def count_linked(self, names: Iterable[str]) -> int:
        """Return how many of these ids are records whose subject is not among them; its key still links the records."""
        with translate_sqlite_errors(self.folder):
            return subject_keys.count_linked(self.connection, names) if self._attach(write=False) else 0

    @contextlib.contextmanager
    def _writing(self, *, keyed: bool = False) -> Iterator[None]:
        """Run a ``with`` block as one transaction on the ledger and, if ``keyed``, on keys.db."""
        with translate_sqlite_errors(self.folder):
            if keyed:
                self._attach(write=True)
            with self.connection:  # commits, or rolls back after an exception
                self.connection.execute("BEGIN IMMEDIATE")
                yield

    def _attach(self, *, write: bool) -> bool:
        if self._keys == "write" or (self._keys and not write):
            return True
        if self._keys:
            self.connection.execute("DETACH keys")
            self._keys = ""
        if subject_keys.attach(self.connection, self.folder, write=write):
            self._keys = "write" if write else "read"
        return bool(self._keys)

    def _select(self, rest: str, parameters: Sequence[Any]) -> list[Event]:
        with translate_sqlite_errors(self.folder):
            rows = self.connection.execute(
                f"SELECT seq, time, kind, body, previous, digest FROM events {rest}", parameters
            )
            return [
                Event(seq, time, kind, strict_loads(body, chain.BODY_BYTES), previous, digest)
                for seq, time, kind, body, previous, digest in rows
            ]


def _numbers(seqs: Sequence[int]) -> str:
    """Return the numbers of events as an SQL list, such as ``1,2,3``."""
    return ",".join(str(int(seq)) for seq in seqs)
