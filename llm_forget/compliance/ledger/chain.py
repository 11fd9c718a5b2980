"""How ``ledger.db`` must look: its tables, its events, and the check that reads all of it anew."""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from llm_forget.compliance.ledger.sqlite_errors import damaged, in_sentences
from llm_forget.compliance.ledger.subject_keys import HASH_BYTES
from llm_forget.core.errors import EvidenceBroken
from llm_forget.core.strict_json import canonical, canonical_digest, strict_loads

FILE, FORMAT = "ledger.db", 1
GENESIS = "sha256:" + "0" * 64
BUSY = 300.0  # seconds to wait for another writer, who may be noting a million records
BODY_BYTES = 1 << 28
SCHEMA = (
    "CREATE TABLE events (seq INTEGER PRIMARY KEY, time TEXT NOT NULL, kind TEXT NOT NULL, body TEXT NOT NULL, "
    "previous TEXT NOT NULL, digest TEXT NOT NULL, once TEXT)",
    "CREATE UNIQUE INDEX events_once ON events (kind, once) WHERE once IS NOT NULL",
    "CREATE TABLE records (seq INTEGER NOT NULL, subject BLOB NOT NULL, record BLOB NOT NULL, "
    "PRIMARY KEY (seq, subject, record)) WITHOUT ROWID",
    "CREATE INDEX records_about ON records (subject, record, seq)",
)
# Columns of SQLite hold values of any type, and one of another type is found by no query that looks for it.
_WELL_FORMED = " AND ".join(
    f"typeof({name}) = 'blob' AND length({name}) = {HASH_BYTES}" for name in ("subject", "record")
)
_ALL_TEXT = " AND ".join(f"typeof({name}) = 'text'" for name in ("time", "kind", "body", "previous", "digest"))
_EVENTS = (
    f"SELECT seq, time, kind, body, previous, digest, once, {_ALL_TEXT} AND typeof(once) IN ('text', 'null') "
    "FROM events ORDER BY seq"
)
_TABLES = (
    "SELECT type, name, tbl_name, sql, typeof(type) || typeof(name) || typeof(tbl_name) || typeof(sql) "
    "FROM sqlite_master"
)


@dataclass(frozen=True)
class Event:
    """One link of the chain; digests are ``sha256:...``."""

    seq: int
    time: str
    kind: str
    body: dict[str, Any]
    previous: str
    digest: str

    def own_digest(self) -> str:
        """What ``digest`` must be."""
        said = {"seq": self.seq, "time": self.time, "kind": self.kind, "body": self.body, "previous": self.previous}
        return canonical_digest(said)


def connect(path: Path) -> sqlite3.Connection:
    """A connection to a file that is there; where it may not be written, reading works."""
    connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=rw", uri=True, isolation_level=None, timeout=BUSY)
    connection.execute("PRAGMA synchronous = EXTRA")  # FULL, and the folder too: a returned append survives power loss
    connection.execute("PRAGMA cache_size = -32000")
    return connection


def records_digest(connection: sqlite3.Connection, seq: int) -> dict[str, Any]:
    """Number and sha256 of the hashes that an event is about, in their order; -1 where one has another form."""
    found, count = hashlib.sha256(), 0
    query = f"SELECT subject, record, {_WELL_FORMED} FROM records WHERE seq = ? ORDER BY subject, record"
    for subject, record, well_formed in connection.execute(query, (seq,)):
        if not well_formed:
            return {"n": -1, "digest": ""}
        found.update(subject)
        found.update(record)
        count += 1
    return {"n": count, "digest": f"sha256:{found.hexdigest()}"}


def now() -> str:
    """UTC, whole seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def verify(folder: Path, stated: tuple[int, str] | None = None) -> tuple[int, str]:
    """Read a ledger anew, all of it; returns its head.

    Args:
        folder: the evidence.
        stated: number and digest of an event, from a signed head.

    Raises:
        EvidenceBroken: names the first event that is not as it was written.
    """
    with in_sentences(folder), contextlib.closing(connect(folder / FILE)) as connection:
        connection.text_factory = bytes  # a changed byte may be no UTF-8
        connection.execute("BEGIN")  # one state of the file, while others go on appending
        head = _walk(connection, stated)
        _rest(connection)
        return head


def _walk(connection: sqlite3.Connection, stated: tuple[int, str] | None) -> tuple[int, str]:
    number, previous = 0, GENESIS
    try:
        for row in connection.execute(_EVENTS):
            number += 1
            event = _event(row, number)
            if event.previous != previous:
                raise _broken(number, "it does not follow from the one before")
            if event.digest != event.own_digest():
                raise _broken(number, "its content was changed")
            found = records_digest(connection, number)
            if found != event.body.get("records", {**found, "n": 0}):
                raise _broken(number, "its records were changed")
            if stated and stated[0] == number and stated[1] != event.digest:
                raise _broken(number, "the signed head has another digest, so this event or one before was made anew")
            previous = event.digest
    except sqlite3.Error as error:
        if damaged(error):
            raise _broken(number + 1, f"it cannot be read ({error})") from error
        raise
    if stated and stated[0] > number:
        raise _broken(number + 1, f"it is gone, and all after it; the signed head is event {stated[0]}")
    return number, previous


def _event(row: tuple[Any, ...], number: int) -> Event:
    """A row as it must be; what SQLite would forgive is not forgiven."""
    seq, *texts, once, well_formed = row
    if seq != number:
        raise _broken(number, f"it is gone; the next one is {seq}")
    try:
        time, kind, body, previous, digest = (text.decode("utf-8") for text in texts)
        content = strict_loads(body, BODY_BYTES)
        if (
            well_formed
            and canonical(content) == texts[2]
            and content.get("once") == (None if once is None else once.decode("utf-8"))
        ):
            return Event(seq, time, kind, content, previous, digest)
    except (ValueError, AttributeError):
        pass
    raise _broken(number, "its content was changed")


def _rest(connection: sqlite3.Connection) -> None:
    """What no event answers for: records of none, other tables, pages that SQLite itself finds damaged."""
    try:
        stray = connection.execute("SELECT MIN(seq) FROM records WHERE seq NOT IN (SELECT seq FROM events)").fetchone()
        made = set(connection.execute(_TABLES))
        damage = connection.execute("PRAGMA integrity_check(1)").fetchone()
    except (sqlite3.Error, UnicodeError) as error:
        if isinstance(error, sqlite3.Error) and not damaged(error):
            raise
        raise EvidenceBroken(f"the ledger is damaged, though every event is as it was written: {error}") from error
    if stray[0] is not None:
        raise _broken(stray[0], "it has records, but there is no such event")
    if made != _tables():
        raise EvidenceBroken("the ledger is broken: its tables are not those that it was made with")
    if damage != (b"ok",):
        raise EvidenceBroken("the ledger is broken: SQLite finds its pages damaged, though every event is as written")


def _tables() -> set[tuple[Any, ...]]:
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        connection.text_factory = bytes
        for statement in SCHEMA:
            connection.execute(statement)
        return set(connection.execute(_TABLES))


def _broken(seq: int, why: str) -> EvidenceBroken:
    return EvidenceBroken(f"the ledger is broken at event {seq}: {why}")


MAKING = ("training", "unlearning", "merge")
