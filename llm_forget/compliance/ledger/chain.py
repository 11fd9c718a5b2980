"""Define the tables and events of ``ledger.db``, and verify the whole file."""

import contextlib
import hashlib
import sqlite3
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from llm_forget.compliance.ledger.sqlite_errors import is_damage, translate_sqlite_errors
from llm_forget.compliance.ledger.subject_keys import HASH_BYTES
from llm_forget.core.errors import EvidenceBroken
from llm_forget.core.strict_json import canonical, canonical_digest, strict_loads

FILE, FORMAT = "ledger.db", 1
GENESIS = "sha256:" + "0" * 64
MODEL_EVENTS = ("training", "unlearning", "merge")  # kinds of events that produce a model
BUSY = 300.0  # seconds to wait for another writer, which may be adding a million records
BODY_BYTES = 1 << 28
SCHEMA = (
    "CREATE TABLE events (seq INTEGER PRIMARY KEY, time TEXT NOT NULL, kind TEXT NOT NULL, body TEXT NOT NULL, "
    "previous TEXT NOT NULL, digest TEXT NOT NULL, once TEXT)",
    "CREATE UNIQUE INDEX events_once ON events (kind, once) WHERE once IS NOT NULL",
    "CREATE TABLE records (seq INTEGER NOT NULL, subject BLOB NOT NULL, record BLOB NOT NULL, "
    "PRIMARY KEY (seq, subject, record)) WITHOUT ROWID",
    "CREATE INDEX records_about ON records (subject, record, seq)",
)
# SQLite columns accept values of any type, and comparisons skip values of other types. So these queries check types.
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
    """An event of the ledger. ``previous`` is the digest of the event before it. All digests start with ``sha256:``."""

    seq: int
    time: str
    kind: str
    body: dict[str, Any]
    previous: str
    digest: str

    def computed_digest(self) -> str:
        """Return the digest of the event's content. It equals ``digest`` unless the event was changed."""
        content = {"seq": self.seq, "time": self.time, "kind": self.kind, "body": self.body, "previous": self.previous}
        return canonical_digest(content)


def connect(path: Path) -> sqlite3.Connection:
    """Connect to an existing database file, read-only if the user has no permission to write it."""
    connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=rw", uri=True, isolation_level=None, timeout=BUSY)
    connection.execute("PRAGMA synchronous = EXTRA")  # also flushes the folder: an append survives a power loss
    connection.execute("PRAGMA cache_size = -32000")
    return connection


def records_digest(connection: sqlite3.Connection, seq: int) -> dict[str, Any]:
    """Return count ``n`` and SHA-256 ``digest`` of an event's sorted record hashes; ``n`` is -1 if one is malformed."""
    digest, count = hashlib.sha256(), 0
    query = f"SELECT subject, record, {_WELL_FORMED} FROM records WHERE seq = ? ORDER BY subject, record"
    for subject, record, well_formed in connection.execute(query, (seq,)):
        if not well_formed:
            return {"n": -1, "digest": ""}
        digest.update(subject)
        digest.update(record)
        count += 1
    return {"n": count, "digest": f"sha256:{digest.hexdigest()}"}


def now() -> str:
    """Return the current UTC time in ISO format, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def verify(folder: Path, stated: tuple[int, str] | None = None) -> tuple[int, str]:
    """Verify every event, record and database page of a ledger, and return the number and digest of its last event.

    ``stated`` is the number and digest of the event in a signed head. The ledger must contain this event.
    Raises EvidenceBroken if the ledger was changed. The message names the first changed or missing event.
    """
    with translate_sqlite_errors(folder), contextlib.closing(connect(folder / FILE)) as connection:
        connection.text_factory = bytes  # altered bytes may not be UTF-8
        connection.execute("BEGIN")  # a consistent snapshot while other processes append
        head = _verify_events(connection, stated)
        _verify_tables(connection)
        return head


def _verify_events(connection: sqlite3.Connection, stated: tuple[int, str] | None) -> tuple[int, str]:
    number, previous = 0, GENESIS
    try:
        for row in connection.execute(_EVENTS):
            number += 1
            event = _event(row, number)
            if event.previous != previous:
                raise _broken(number, "it does not follow from the event before it")
            if event.digest != event.computed_digest():
                raise _broken(number, "its content was changed")
            records = records_digest(connection, number)
            if records != event.body.get("records", {**records, "n": 0}):
                raise _broken(number, "its records were changed")
            if stated and stated[0] == number and stated[1] != event.digest:
                raise _broken(
                    number, "the signed head has another digest, so this event or an earlier one was rewritten"
                )
            previous = event.digest
    except sqlite3.Error as error:
        if is_damage(error):
            raise _broken(number + 1, f"it cannot be read ({error})") from error
        raise
    if stated and stated[0] > number:
        raise _broken(number + 1, f"it is missing, and so are all later ones; the signed head is event {stated[0]}")
    return number, previous


def _event(row: tuple[Any, ...], number: int) -> Event:
    """Return a database row as an event. Raise EvidenceBroken for a wrong number or type, or JSON in another form."""
    seq, *texts, once, well_formed = row
    if seq != number:
        raise _broken(number, f"it is missing; the next one is {seq}")
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


def _verify_tables(connection: sqlite3.Connection) -> None:
    """Raise EvidenceBroken for changes that event digests do not reveal: records without an event, other tables or
    indexes, and damaged pages.
    """
    try:
        stray = connection.execute("SELECT MIN(seq) FROM records WHERE seq NOT IN (SELECT seq FROM events)").fetchone()
        tables = set(connection.execute(_TABLES))
        damage = connection.execute("PRAGMA integrity_check(1)").fetchone()
    except (sqlite3.Error, UnicodeError) as error:
        if isinstance(error, sqlite3.Error) and not is_damage(error):
            raise
        raise EvidenceBroken(f"the ledger is damaged, although every event is intact: {error}") from error
    if stray[0] is not None:
        raise _broken(stray[0], "it has records, but no such event exists")
    if tables != _expected_tables():
        raise EvidenceBroken("the ledger is broken: its tables or indexes were changed")
    if damage != (b"ok",):
        raise EvidenceBroken("the ledger is broken: SQLite reports damaged pages, although every event is intact")


def _expected_tables() -> set[tuple[Any, ...]]:
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        connection.text_factory = bytes
        for statement in SCHEMA:
            connection.execute(statement)
        return set(connection.execute(_TABLES))


def _broken(seq: int, reason: str) -> EvidenceBroken:
    return EvidenceBroken(f"the ledger is broken at event {seq}: {reason}")
