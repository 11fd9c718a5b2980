"""The keys under which the ledger hashes subjects and records: ``keys.db``, 0600, one key of 32 random bytes a subject.

The ledger holds HMAC-SHA256 of ids, 16 bytes each, under the key of their subject. Without the key nobody can tell
whether a hash is that of a given id, since ids, often names, can be guessed and random keys cannot. Destroying a key
therefore unlinks everything that was ever noted about its subject, and no row of the ledger changes.

Subjects themselves are looked up by a hash, too, under a key that all have in common and that never leaves this file.

What this cannot do: a backup or snapshot of ``keys.db`` brings destroyed keys back, so keep none for longer than
erasure may take; and a key that SQLite has overwritten may still lie in a copy that a file system (copy on write) or an
SSD kept, or in blocks that were freed: SQLite's rollback journal holds pages as they were before, and a commit over
two files cuts it off by itself. What a killed process left of it is overwritten.
"""

from __future__ import annotations

import hmac
import os
import secrets
import sqlite3
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from llm_forget.core.errors import EvidenceError

FILE = "keys.db"
HASH_BYTES = 16
_PART = 900  # subjects looked up at once; SQLite may allow no more than 999 parameters
SCHEMA = (
    "CREATE TABLE IF NOT EXISTS keys.master (one INTEGER PRIMARY KEY CHECK (one = 1), key BLOB NOT NULL)",
    # Rows lie in the order in which they came, so that a page is never split and a key never moved: no copy is left.
    "CREATE TABLE IF NOT EXISTS keys.subjects "
    "(place INTEGER PRIMARY KEY, name BLOB NOT NULL UNIQUE, key BLOB NOT NULL)",
    # Runs note a record as its own subject; whose it is, only a request says.
    "CREATE TABLE IF NOT EXISTS keys.owned "
    "(subject BLOB NOT NULL, record BLOB NOT NULL, PRIMARY KEY (subject, record))",
)


def attach(connection: sqlite3.Connection, folder: Path, *, write: bool) -> bool:
    """Make the keys known to a connection as ``keys``; False where there are none and ``write`` is not set.

    Raises:
        sqlite3.Error: the file cannot be read or is none of ours.
    """
    path = folder / FILE
    if write:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    elif not path.is_file() or not path.stat().st_size:
        return False
    connection.execute("ATTACH ? AS keys", (f"{path.resolve().as_uri()}?mode=rw",))
    try:
        connection.execute("PRAGMA keys.secure_delete = ON")
        connection.execute("PRAGMA keys.synchronous = EXTRA")
        connection.execute("PRAGMA keys.cache_size = -16000")
        if write:
            connection.execute("PRAGMA keys.journal_mode = PERSIST")
            _prepare(connection)
            scrub(connection, folder)
        # Who made the file may have been killed before it held anything.
        made = connection.execute("SELECT 1 FROM keys.sqlite_master WHERE name = 'master'").fetchone() is not None
    except BaseException:
        connection.execute("DETACH keys")
        raise
    if not made:
        connection.execute("DETACH keys")
    return made


def hashes(connection: sqlite3.Connection, pairs: Iterable[tuple[str, str]]) -> Iterator[tuple[bytes, bytes]]:
    """Hashes of (subject, record id) pairs, in parts; a subject that has no key is given one.

    Raises:
        ValueError: an id that is no text.
    """
    master = _master(connection)
    rest = iter(pairs)
    while part := list(islice(rest, _PART)):
        if not all(isinstance(name, str) for pair in part for name in pair):
            raise EvidenceError("ids of subjects and records must be texts; put quotes around numbers")
        names = {subject: _hash(master, subject) for subject, _ in part}
        known = _known(connection, list(names.values()))
        new = [(name, secrets.token_bytes(32)) for name in names.values() if name not in known]
        connection.executemany("INSERT INTO keys.subjects (name, key) VALUES (?, ?)", new)
        known.update(new)
        owned = [(names[subject], _hash(master, record)) for subject, record in part if subject != record]
        connection.executemany("INSERT OR IGNORE INTO keys.owned VALUES (?, ?)", owned)
        for subject, record in part:
            key = known[names[subject]]
            yield _subject(key), _record(key, record)


def lookup(connection: sqlite3.Connection, subject: str, record: str | None) -> tuple[bytes, bytes | None] | None:
    """Hashes of a subject and one of its records; None where the subject has no key, or no longer one."""
    master = _master(connection)
    keys_by_name = _known(connection, [_hash(master, subject)])
    for key in keys_by_name.values():
        return _subject(key), None if record is None else _record(key, record)
    return None


def living(connection: sqlite3.Connection) -> set[bytes]:
    """Hashes of all subjects that have a key."""
    return {_subject(key) for (key,) in connection.execute("SELECT key FROM keys.subjects")}


def destroy(connection: sqlite3.Connection, subjects: Iterable[str]) -> int:
    """Overwrite and delete keys, inside the caller's transaction; returns how many there were. Then `scrub`."""
    master = _master(connection)
    gone = 0
    for subject in subjects:
        name = _hash(master, subject)
        rows = connection.execute("SELECT record FROM keys.owned WHERE subject = ?", (name,)).fetchall()
        for hashed_name in (name, *(record for (record,) in rows)):
            connection.execute("UPDATE keys.subjects SET key = zeroblob(32) WHERE name = ?", (hashed_name,))
            gone += connection.execute("DELETE FROM keys.subjects WHERE name = ?", (hashed_name,)).rowcount
        connection.execute("DELETE FROM keys.owned WHERE subject = ?", (name,))
    return gone


def still_linked(connection: sqlite3.Connection, names: Iterable[str]) -> int:
    """How many of some records can be found by the key of a subject that is not among these names."""
    master = _master(connection)
    hashed_names = {_hash(master, name) for name in names}
    rows = connection.execute("SELECT subject, record FROM keys.owned")
    return len({record for subject, record in rows if record in hashed_names and subject not in hashed_names})


def scrub(connection: sqlite3.Connection, folder: Path) -> None:
    """Overwrite the rollback journal, where keys that were destroyed may stand; outside of transactions."""
    journal = folder / f"{FILE}-journal"
    # The lock keeps other writers from the journal, and SQLite writes none for a transaction that changes nothing;
    # taking it also rolls back what a killed process had begun.
    connection.execute("BEGIN IMMEDIATE")
    try:
        if journal.is_file() and (size := journal.stat().st_size):
            with open(journal, "r+b") as file:
                for start in range(0, size, 1 << 20):
                    file.write(bytes(min(1 << 20, size - start)))
                file.flush()
                os.fsync(file.fileno())
                file.truncate(0)
    finally:
        connection.execute("ROLLBACK")


def _prepare(connection: sqlite3.Connection) -> None:
    """Make the tables and the common key where they are not there."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        for statement in SCHEMA:
            connection.execute(statement)
        connection.execute("INSERT OR IGNORE INTO keys.master VALUES (1, ?)", (secrets.token_bytes(32),))
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def _master(connection: sqlite3.Connection) -> bytes:
    return connection.execute("SELECT key FROM keys.master").fetchone()[0]


def _known(connection: sqlite3.Connection, names: list[bytes]) -> dict[bytes, bytes]:
    marks = ",".join("?" * len(names))
    return dict(connection.execute(f"SELECT name, key FROM keys.subjects WHERE name IN ({marks})", names))


def _subject(key: bytes) -> bytes:
    return _hash(key, "subject")[:HASH_BYTES]


def _record(key: bytes, record: str) -> bytes:
    return _hash(key, "record", record)[:HASH_BYTES]


def _hash(key: bytes, *words: str) -> bytes:
    """HMAC-SHA256; the words are told apart by their lengths."""
    data = b"".join(len(word.encode()).to_bytes(8, "big") + word.encode() for word in words)
    return hmac.digest(key, data, "sha256")
