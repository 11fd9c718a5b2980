"""``keys.db`` (mode 0600) holds a random 32-byte key for each subject. With it, the ledger hashes subjects and records.

The ledger stores the HMAC-SHA256 of each id, truncated to 16 bytes. Ids are often names, which can be guessed, but a
guess can be compared with a hash only if the key is known. Destroying a key thus unlinks all events from its subject.
``keys.db`` also stores subjects only as hashes. Their key, the master key, is in this file only.

A destroyed key may survive in a backup or snapshot of ``keys.db``, so delete backups within the time allowed for
erasure. It may also survive in freed disk blocks, and in old copies that a copy-on-write file system or an SSD keeps.
"""

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
_BATCH = 900  # subjects per query; SQLite may allow at most 999 parameters
SCHEMA = (
    "CREATE TABLE IF NOT EXISTS keys.master (one INTEGER PRIMARY KEY CHECK (one = 1), key BLOB NOT NULL)",
    # Rows are only appended. SQLite then never splits a page or moves a key, which would leave a copy of the key.
    "CREATE TABLE IF NOT EXISTS keys.subjects "
    "(place INTEGER PRIMARY KEY, name BLOB NOT NULL UNIQUE, key BLOB NOT NULL)",
    # The records of each subject. A record also has a key of its own, which is destroyed with the subject's key.
    "CREATE TABLE IF NOT EXISTS keys.owned "
    "(subject BLOB NOT NULL, record BLOB NOT NULL, PRIMARY KEY (subject, record))",
)


def attach(connection: sqlite3.Connection, folder: Path, *, write: bool) -> bool:
    """Attach ``keys.db`` to a connection as ``keys``, and return whether it exists. If ``write``, create it first."""
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
        # The process that created the file may have been killed before it created the tables.
        has_tables = connection.execute("SELECT 1 FROM keys.sqlite_master WHERE name = 'master'").fetchone() is not None
    except BaseException:
        connection.execute("DETACH keys")
        raise
    if not has_tables:
        connection.execute("DETACH keys")
    return has_tables


def hashes(connection: sqlite3.Connection, pairs: Iterable[tuple[str, str]]) -> Iterator[tuple[bytes, bytes]]:
    """Yield (subject hash, record hash) for each pair (subject, record id). A subject without a key gets a new one."""
    master = _master(connection)
    pairs = iter(pairs)
    while batch := list(islice(pairs, _BATCH)):
        if not all(isinstance(name, str) for pair in batch for name in pair):
            raise EvidenceError("ids of subjects and records must be strings; put quotes around numbers")
        names = {subject: _hash(master, subject) for subject, _ in batch}
        keys_by_name = _keys_by_name(connection, list(names.values()))
        new = [(name, secrets.token_bytes(32)) for name in names.values() if name not in keys_by_name]
        connection.executemany("INSERT INTO keys.subjects (name, key) VALUES (?, ?)", new)
        keys_by_name.update(new)
        owned = [(names[subject], _hash(master, record)) for subject, record in batch if subject != record]
        connection.executemany("INSERT OR IGNORE INTO keys.owned VALUES (?, ?)", owned)
        for subject, record in batch:
            key = keys_by_name[names[subject]]
            yield _subject(key), _record(key, record)


def lookup(connection: sqlite3.Connection, subject: str, record: str | None) -> tuple[bytes, bytes | None] | None:
    """Return (subject hash, record hash), or None if the subject has no key. Without a record, its hash is None."""
    for key in _keys_by_name(connection, [_hash(_master(connection), subject)]).values():
        return _subject(key), None if record is None else _record(key, record)
    return None


def subjects_with_key(connection: sqlite3.Connection) -> set[bytes]:
    """Return the hashes of all subjects that have a key."""
    return {_subject(key) for (key,) in connection.execute("SELECT key FROM keys.subjects")}


def destroy(connection: sqlite3.Connection, subjects: Iterable[str]) -> int:
    """Destroy the keys of subjects and of their records, and return how many. Call `scrub` after the commit."""
    master = _master(connection)
    destroyed = 0
    for subject in subjects:
        name = _hash(master, subject)
        rows = connection.execute("SELECT record FROM keys.owned WHERE subject = ?", (name,)).fetchall()
        for hashed_name in (name, *(record for (record,) in rows)):
            connection.execute("UPDATE keys.subjects SET key = zeroblob(32) WHERE name = ?", (hashed_name,))
            destroyed += connection.execute("DELETE FROM keys.subjects WHERE name = ?", (hashed_name,)).rowcount
        connection.execute("DELETE FROM keys.owned WHERE subject = ?", (name,))
    return destroyed


def count_linked(connection: sqlite3.Connection, names: Iterable[str]) -> int:
    """Return how many of these ids are records whose subject is not among them; its key still links the records."""
    master = _master(connection)
    hashed_names = {_hash(master, name) for name in names}
    rows = connection.execute("SELECT subject, record FROM keys.owned")
    return len({record for subject, record in rows if record in hashed_names and subject not in hashed_names})


def scrub(connection: sqlite3.Connection, folder: Path) -> None:
    """Overwrite SQLite's rollback journal, which may contain destroyed keys. Call this outside of a transaction."""
    journal = folder / f"{FILE}-journal"
    # The lock keeps other writers away from the journal, and this transaction changes nothing, so it writes no journal.
    # Taking the lock also rolls back the transaction of a killed process.
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
    """Create the tables and the master key if they do not exist."""
    with connection:  # commits, or rolls back after an exception
        connection.execute("BEGIN IMMEDIATE")
        for statement in SCHEMA:
            connection.execute(statement)
        connection.execute("INSERT OR IGNORE INTO keys.master VALUES (1, ?)", (secrets.token_bytes(32),))


def _master(connection: sqlite3.Connection) -> bytes:
    return connection.execute("SELECT key FROM keys.master").fetchone()[0]


def _keys_by_name(connection: sqlite3.Connection, names: list[bytes]) -> dict[bytes, bytes]:
    marks = ",".join("?" * len(names))
    return dict(connection.execute(f"SELECT name, key FROM keys.subjects WHERE name IN ({marks})", names))


def _subject(key: bytes) -> bytes:
    return _hash(key, "subject")[:HASH_BYTES]


def _record(key: bytes, record: str) -> bytes:
    return _hash(key, "record", record)[:HASH_BYTES]


def _hash(key: bytes, *words: str) -> bytes:
    """Return the HMAC-SHA256 of words and their lengths. With the lengths, the hashes of (ab, c) and (a, bc) differ."""
    data = b"".join(len(word.encode()).to_bytes(8, "big") + word.encode() for word in words)
    return hmac.digest(key, data, "sha256")
