"""``ledger.db``: what happened to data and models, as a chain of events in which no edit stays unseen.

Every event carries the digest of the one before it and one of its own, over the canonical JSON of its number, time,
kind, body and predecessor. The records an event is about are keyed hashes in a table of their own (see `keys`), whose
digest is in the body. `verify` reads everything anew; what it cannot see, that the end of the chain was cut off or all
of it written anew, is seen with a signed head, `anchor`, that is kept where the writer of the ledger cannot change it.

One process writes at a time (BEGIN IMMEDIATE); an append that returned is on disk. Order is by number, since clocks are
set back.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain as chained
from pathlib import Path
from typing import Any

from llm_forget.compliance.ledger import chain, subject_keys
from llm_forget.compliance.ledger import signed_head as signed
from llm_forget.compliance.ledger.chain import FILE, FORMAT, GENESIS, SCHEMA, Event
from llm_forget.compliance.ledger.sqlite_errors import in_sentences
from llm_forget.core.errors import EvidenceBroken, EvidenceError
from llm_forget.core.registry import did_you_mean
from llm_forget.core.strict_json import canonical, strict_loads

KINDS = (
    "training", "request", "unlearning", "verification", "merge", "version", "publish", "rollback", "purge", "closed",
    "erasure",
)  # fmt: skip
RESERVED = ("once", "records")  # keys of a body that `append` itself writes


class Ledger:
    """The ledger of an evidence folder; a context manager, not to be shared by threads or over a fork."""

    def __init__(self, folder: Path, connection: sqlite3.Connection) -> None:
        self.folder = folder
        self.connection = connection
        self._keys = ""  # how keys.db is attached: "", "read" or "write"

    @classmethod
    def open(cls, folder: Path, *, create: bool = False) -> Ledger:
        """Open the ledger of a folder; ``create`` makes folder (0700) and ledger (0600) where there are none.

        Raises:
            ValueError: there is none, or one of another version.
            EvidenceBroken: there was one, as the signed head says, or the file is no ledger.
            PermissionError: it may not be read or made.
        """
        path = folder / FILE
        there = path.is_file() and path.stat().st_size > 0
        if not there and (folder / signed.FILE).is_file():
            raise EvidenceBroken(f"'{path}' is gone or empty, but '{folder / 'anchor.json'}' says that there was one")
        if not there and not create:
            raise EvidenceError(f"there is no ledger in '{folder}'; `llm-forget audit note RUN` begins one")
        with in_sentences(folder):
            if create:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                if not there:
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
                if self.connection.execute("PRAGMA user_version").fetchone() == (0,):  # another process was faster
                    for statement in SCHEMA:
                        self.connection.execute(statement)
                    self.connection.execute(f"PRAGMA user_version = {FORMAT}")
        elif format_number == 0:
            raise EvidenceError(f"there is no ledger in '{self.folder}'; `llm-forget audit note RUN` begins one")
        elif format_number != FORMAT:
            raise EvidenceError(
                f"'{self.folder / FILE}' has format {format_number}; this version of llm-forget reads format {FORMAT}"
            )

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the files."""
        self.connection.close()

    def append(
        self, kind: str, body: dict[str, Any], *, once: str | None = None, records: Iterable[tuple[str, str]] = ()
    ) -> Event:
        """Add an event; when this returns it is on disk.

        Args:
            kind: one of `KINDS`.
            body: JSON; no ids and no text of rows.
            once: a digest that names what happened; a second event of the same kind and name is not added, the first
                one is returned.
            records: (subject, record id) pairs that the event is about; read part by part, so they may be many.

        Raises:
            ValueError: a kind that is not known, a body that is no JSON, or another process has been writing for long.
            OSError: no space, or the file may not be written: nothing was added.
        """
        if kind not in KINDS:
            raise EvidenceError(f"'{kind}' is no kind of event; {did_you_mean(kind, KINDS)}")
        if taken := [key for key in RESERVED if key in body]:
            raise EvidenceError(f"the body of an event has its own '{taken[0]}'; give it as an argument")
        canonical(body)  # refused before anything is locked
        pairs = iter(records)
        first = next(pairs, None)
        with self._writing(keyed=first is not None):
            if once is not None and (before := self._first(kind, once)):
                return before
            return self._add(kind, body, once, None if first is None else chained([first], pairs))

    def _add(self, kind: str, body: dict[str, Any], once: str | None, pairs: Iterable[tuple[str, str]] | None) -> Event:
        """Inside a transaction."""
        last, previous = self.head()
        whole = dict(body) if once is None else {**body, "once": once}
        if pairs is not None:
            whole["records"] = self._note_records(last + 1, pairs)
        event = Event(last + 1, chain.now(), kind, whole, previous, "")
        event = Event(last + 1, event.time, kind, whole, previous, event.own_digest())
        row = (event.seq, event.time, kind, canonical(whole).decode(), previous, event.digest, once)
        self.connection.execute("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?)", row)
        return event

    def _note_records(self, seq: int, pairs: Iterable[tuple[str, str]]) -> dict[str, Any]:
        """Sorted and each once through a table on disk, since they may not fit into memory."""
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
        """All events in their order, or those of some kinds."""
        marks = ",".join("?" * len(kinds))
        where = f"WHERE kind IN ({marks})" if kinds else ""
        return self._select(f"{where} ORDER BY seq", kinds)

    def about(self, subject: str, record: str | None = None) -> list[Event]:
        """Events whose records include one of the subject's; none once its key was destroyed."""
        with in_sentences(self.folder):
            if not self._attach(write=False):
                return []
            hashes = subject_keys.lookup(self.connection, subject, record)
        if hashes is None:
            return []
        where = "subject = ?" + (" AND record = ?" if record is not None else "")
        parameters = [value for value in hashes if value is not None]
        return self._select(f"WHERE seq IN (SELECT seq FROM records WHERE {where}) ORDER BY seq", parameters)

    def common(self, first: Sequence[int], second: Sequence[int]) -> set[str]:
        """Hashes of the records of some events that others are about, too; numbers of events.

        Works after keys were destroyed as before: equal records have equal hashes.
        """
        among = [",".join(str(int(seq)) for seq in seqs) for seqs in (first, second)]
        same = "SELECT 1 FROM records AS b WHERE b.subject = a.subject AND b.record = a.record AND b.seq IN"
        query = f"SELECT record FROM records AS a WHERE a.seq IN ({among[0]}) AND EXISTS ({same} ({among[1]}))"
        with in_sentences(self.folder):
            return {record.hex() for (record,) in self.connection.execute(query)}

    def hashes(self, seqs: Sequence[int]) -> Iterator[str]:
        """Hashes of the records that some events are about, each once, as hex digits; numbers of events."""
        among = ",".join(str(int(seq)) for seq in seqs)
        query = f"SELECT DISTINCT subject, record FROM records WHERE seq IN ({among}) ORDER BY subject, record"
        with in_sentences(self.folder):
            for _, record in self.connection.execute(query):
                yield record.hex()

    def which(self, seqs: Sequence[int], records: Iterable[str]) -> set[str]:
        """Those of some record ids that some events are about; of records whose key was destroyed nobody can tell."""
        among = set(self.hashes(seqs))
        matching_ids = set()
        with in_sentences(self.folder):
            if among and self._attach(write=False):
                for record in records:
                    hashed = subject_keys.lookup(self.connection, record, record)
                    if hashed is not None and hashed[1] is not None and hashed[1].hex() in among:
                        matching_ids.add(record)
        return matching_ids

    def orphaned(self, seq: int) -> bool:
        """Whether an event is about records whose keys were destroyed and that no closed deletion is about."""
        deleted = "SELECT 1 FROM records AS b JOIN events ON events.seq = b.seq WHERE kind = 'closed'"
        query = (
            f"SELECT DISTINCT subject FROM records AS a WHERE seq = ? AND NOT EXISTS ({deleted} "
            "AND b.subject = a.subject AND b.record = a.record)"
        )
        with in_sentences(self.folder):
            living = subject_keys.living(self.connection) if self._attach(write=False) else set()
            return any(subject not in living for (subject,) in self.connection.execute(query, (seq,)))

    def head(self) -> tuple[int, str]:
        """Number and digest of the last event."""
        with in_sentences(self.folder):
            row = self.connection.execute("SELECT seq, digest FROM events ORDER BY seq DESC LIMIT 1").fetchone()
        return row or (0, GENESIS)

    def verify(self, anchor: Path | None = None, public: Path | None = None) -> tuple[int, str]:
        """Read everything anew, and the signed head: the folder's own, or ``anchor`` and ``public`` kept elsewhere.

        Returns:
            Number and digest of the last event.

        Raises:
            EvidenceBroken: names the first event that is not as it was written.
            FileNotFoundError: a file that was given is not there.
        """
        return chain.verify(self.folder, self.signed_head(anchor, public))

    def signed_head(self, anchor: Path | None = None, public: Path | None = None) -> tuple[int, str] | None:
        """Number and digest that were signed, where there is an anchor; the signature is checked."""
        return signed.read(self.folder, anchor, public)

    def anchor(self) -> Path:
        """Verify, then write the signed head, ``anchor.json``; keep a copy of it where the ledger's writer cannot go.

        Raises:
            EvidenceBroken: as `verify`; the head of a broken chain is not signed.
        """
        return signed.write(self.folder, *self.verify())

    def forget_key(self, subject: str) -> int:
        """Destroy the key of a subject; see `forget_keys`."""
        return self.forget_keys([subject])

    def forget_keys(self, subjects: Iterable[str]) -> int:
        """Destroy keys, so that what was noted can no longer be linked to their owners; adds one event, a count.

        Returns:
            How many there were; nothing is added for none.
        """
        with in_sentences(self.folder):
            if not self._attach(write=False):
                return 0
        with self._writing(keyed=True):
            gone = subject_keys.destroy(self.connection, subjects)
            if gone:
                self._add("erasure", {"keys": gone}, None, None)
        with in_sentences(self.folder):
            subject_keys.scrub(self.connection, self.folder)
        return gone

    def still_linked(self, names: Iterable[str]) -> int:
        """How many of these records have a subject that is not among them, whose key links them, too."""
        with in_sentences(self.folder):
            return subject_keys.still_linked(self.connection, names) if self._attach(write=False) else 0

    @contextlib.contextmanager
    def _writing(self, *, keyed: bool = False) -> Iterator[None]:
        """A transaction over the ledger, and the keys if asked: both are written or neither."""
        with in_sentences(self.folder):
            if keyed:
                self._attach(write=True)
            self.connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self.connection.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):  # SQLite itself may have rolled back already
                    self.connection.execute("ROLLBACK")
                raise

    def _attach(self, *, write: bool) -> bool:
        if self._keys == "write" or (self._keys and not write):
            return True
        if self._keys:
            self.connection.execute("DETACH keys")
            self._keys = ""
        if subject_keys.attach(self.connection, self.folder, write=write):
            self._keys = "write" if write else "read"
        return bool(self._keys)

    def _first(self, kind: str, once: str) -> Event | None:
        events = self._select("WHERE kind = ? AND once = ?", (kind, once))
        return events[0] if events else None

    def _select(self, rest: str, parameters: Sequence[Any]) -> list[Event]:
        with in_sentences(self.folder):
            rows = self.connection.execute(
                f"SELECT seq, time, kind, body, previous, digest FROM events {rest}", parameters
            )
            return [
                Event(seq, time, kind, strict_loads(body, chain.BODY_BYTES), previous, digest)
                for seq, time, kind, body, previous, digest in rows
            ]
