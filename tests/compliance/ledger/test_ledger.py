"""What the ledger promises: order, once, keyed hashes, and that no edit of it stays unseen."""

import datetime
import re
import shutil
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llm_forget.compliance.ledger import chain
from llm_forget.compliance.ledger.ledger import KINDS, Event, Ledger
from llm_forget.core.errors import EvidenceBroken
from llm_forget.core.strict_json import canonical
from tests.support.fault_positions import FAULTS, FaultPositions

PEOPLE = [("Ann", "ann-1"), ("Ann", "ann-2"), ("Bob", "bob-1")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Evidence with five events."""
    with Ledger.open(tmp_path / "evidence", create=True) as ledger:
        ledger.append("training", {"run": "target", "steps": 12, "loss": 0.25}, once="sha256:1", records=PEOPLE)
        ledger.append("request", {"request": "r1"}, records=[PEOPLE[0]])
        ledger.append("unlearning", {"run": "npo", "é": "ü"}, once="sha256:3", records=[PEOPLE[0]])
        ledger.append("verification", {"answers": {"demo": {"forgot": "yes"}}})
        ledger.append("closed", {"request": "r1"}, records=[PEOPLE[0]])
    return tmp_path / "evidence"


@pytest.fixture
def editor(folder: Path) -> Iterator[sqlite3.Connection]:
    """Somebody who edits the tables of the ledger."""
    connection = sqlite3.connect(folder / "ledger.db", isolation_level=None)
    connection.execute("PRAGMA synchronous = OFF")
    connection.text_factory = bytes
    yield connection
    connection.close()


def broken_at(folder: Path) -> int | None:
    """First bad event that `verify` names, 0 where it names none, None where it finds nothing."""
    try:
        with Ledger.open(folder) as ledger:
            ledger.verify()
    except EvidenceBroken as error:
        found = re.search(r"broken at event (\d+)", str(error))
        return int(found[1]) if found else 0
    return None


def test_events_form_a_chain(folder: Path) -> None:
    with Ledger.open(folder) as ledger:
        events = ledger.events()
        assert [event.seq for event in events] == [1, 2, 3, 4, 5]
        assert [event.previous for event in events[1:]] == [event.digest for event in events[:-1]]
        assert ledger.head() == (5, events[-1].digest)
        assert [event.kind for event in ledger.events("request", "closed")] == ["request", "closed"]
        ledger.verify()


def test_an_empty_ledger_verifies(tmp_path: Path) -> None:
    with Ledger.open(tmp_path, create=True) as ledger:
        assert (ledger.head(), ledger.events()) == ((0, "sha256:" + "0" * 64), [])
        ledger.verify()


def test_a_repeated_append_returns_the_first_event(folder: Path) -> None:
    with Ledger.open(folder) as ledger:
        first = ledger.append("merge", {"n": 1}, once="sha256:same")
        again = ledger.append("merge", {"n": 2}, once="sha256:same", records=PEOPLE)
        other = ledger.append("publish", {"n": 1}, once="sha256:same")
        assert (again, other.seq) == (first, first.seq + 1)


def test_events_are_found_by_subject_and_by_record(folder: Path) -> None:
    with Ledger.open(folder) as ledger:
        found = {
            (subject, record): [event.seq for event in ledger.about(subject, record)]
            for subject, record in [("Ann", None), ("Ann", "ann-1"), ("Ann", "ann-2"), ("Bob", None), ("Bob", "ann-1")]
        }
        assert found == {
            ("Ann", None): [1, 2, 3, 5],
            ("Ann", "ann-1"): [1, 2, 3, 5],
            ("Ann", "ann-2"): [1],
            ("Bob", None): [1],
            ("Bob", "ann-1"): [],
        }
        assert ledger.about("Eve") == ledger.about("") == ledger.about("Annann", "-1") == []
        assert len(ledger.common_records([1], [5])) == 1
        assert len(list(ledger.record_hashes([1, 5]))) == 3


def test_a_record_named_twice_counts_once(tmp_path: Path) -> None:
    with Ledger.open(tmp_path, create=True) as ledger:
        event = ledger.append("training", {}, records=iter([*PEOPLE, *PEOPLE]))
        assert event.body["records"]["n"] == 3
        ledger.verify()


def test_destroying_a_key_unlinks_its_events_and_keeps_the_chain(folder: Path) -> None:
    with Ledger.open(folder) as ledger:
        before = ledger.events()
        assert ledger.destroy_keys(["Ann", "Eve"]) == 1
        assert ledger.about("Ann") == ledger.about("Ann", "ann-1") == []
        assert [event.seq for event in ledger.about("Bob")] == [1]
        assert ledger.events()[:-1] == before
        assert (ledger.events()[-1].kind, ledger.events()[-1].body) == ("erasure", {"keys": 1})
        assert len(ledger.common_records([1], [5])) == 1, "a later version is still held against the closed deletion"
        ledger.verify()
        assert ledger.destroy_keys(["Ann"]) == 0
        assert ledger.head()[0] == 6, "nothing is added where nothing was destroyed"


def test_a_returning_subject_is_not_linked_to_its_earlier_events(folder: Path) -> None:
    with Ledger.open(folder) as ledger:
        ledger.destroy_keys(["Ann"])
        event = ledger.append("training", {}, records=PEOPLE)
        assert [found.seq for found in ledger.about("Ann")] == [event.seq]


@pytest.mark.slow
def test_no_file_contains_names_or_destroyed_keys(tmp_path: Path) -> None:
    everybody = [(f"Subject-{n}", f"Record-{n}") for n in range(1000)]
    with Ledger.open(tmp_path, create=True) as ledger:
        ledger.append("training", {}, records=everybody)
        ledger.append("training", {}, records=everybody[::3])
        before = set(ledger.connection.execute("SELECT name, key FROM keys.subjects"))
        assert len(before) == 1000
        ledger.destroy_keys(subject for subject, _ in everybody[:960])
        left = set(ledger.connection.execute("SELECT name, key FROM keys.subjects"))
    content = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"Subject-" not in content
    assert b"Record-" not in content
    gone = before - left
    assert len(gone) == 960
    assert [row for row in gone if row[0] in content or row[1] in content] == []
    assert all(name in content and key in content for name, key in left), "the search finds what is there"


def test_files_of_the_evidence_are_readable_by_their_owner_only(folder: Path) -> None:
    with Ledger.open(folder) as ledger:
        ledger.destroy_keys(["Ann"])
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert modes == {"ledger.db": 0o600, "keys.db": 0o600, "keys.db-journal": 0o600}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_events_stay_ordered_by_number_when_the_clock_is_set_back(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Past(datetime.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime.datetime:
            return datetime.datetime(1999, 12, 31, 23, 59, 59, tzinfo=tz)

    monkeypatch.setattr(chain, "datetime", Past)
    with Ledger.open(folder) as ledger:
        event = ledger.append("merge", {})
        assert event.time == "1999-12-31T23:59:59+00:00"
        assert [found.seq for found in ledger.events()] == [1, 2, 3, 4, 5, 6]
        ledger.verify()


@pytest.mark.parametrize(
    ("kind", "body", "said"),
    [
        ("trainin", {}, "did you mean 'training'"),
        ("training", {"records": 1}, "cannot hold 'records'"),
        ("training", {"once": 1}, "cannot hold 'once'"),
        ("training", {"x": float("nan")}, "not finite"),
        ("training", {"x": {1: 2}}, "keys of a JSON object are texts"),
        ("training", {"x": "\ud800"}, "lone surrogate"),
        ("training", {"x": Path("/")}, "no form for"),
    ],
)
def test_an_invalid_event_is_refused_and_adds_nothing(folder: Path, kind: str, body: dict[str, Any], said: str) -> None:
    with Ledger.open(folder) as ledger:
        with pytest.raises(ValueError, match=said):
            ledger.append(kind, body)
        assert ledger.head()[0] == 5


@pytest.mark.parametrize("pair", [(1, "a"), ("a", 1), (None, "a"), ("a", None)])
def test_an_id_that_is_not_a_string_is_refused(folder: Path, pair: tuple[Any, Any]) -> None:
    with Ledger.open(folder) as ledger:
        with pytest.raises(ValueError, match="must be strings"):
            ledger.append("training", {}, records=[("Cem", "cem-1"), pair])
        assert (ledger.head()[0], ledger.about("Cem")) == (5, [])


def test_an_error_among_the_records_adds_nothing(folder: Path) -> None:
    def torn() -> Iterator[tuple[str, str]]:
        yield ("Cem", "cem-1")
        raise ValueError("a torn file")

    with Ledger.open(folder) as ledger:
        with pytest.raises(ValueError, match="a torn file"):
            ledger.append("training", {}, records=torn())
        assert (ledger.head()[0], ledger.about("Cem")) == (5, [])
        ledger.append("training", {}, records=[("Cem", "cem-1")])
        ledger.verify()


def test_reading_creates_no_ledger(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no ledger in"):
        Ledger.open(tmp_path / "evidence")
    assert not (tmp_path / "evidence").exists()


def test_a_file_that_is_not_a_ledger_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ledger.db").write_bytes(b"no database at all" * 100)
    with pytest.raises(EvidenceBroken, match="damaged"):
        Ledger.open(tmp_path, create=True)


@pytest.mark.slow
@FAULTS
def test_every_changed_byte_of_every_row_is_found(
    folder: Path, editor: sqlite3.Connection, faults: FaultPositions
) -> None:
    missed = []
    rows = {
        "events": ("seq", ["time", "kind", "body", "previous", "digest", "once"]),
        "records": ("seq = ? AND subject = ? AND record", ["subject", "record"]),
    }
    for table, (key, columns) in rows.items():
        where = f"{key} = ?"
        keys = "seq" if table == "events" else "seq, subject, record"
        for row in editor.execute(f"SELECT {keys}, {', '.join(columns)} FROM {table}").fetchall():
            place = row[: len(keys.split(","))]
            for column, value in zip(columns, row[len(place) :], strict=True):
                for byte in faults.of(len(value or b""), size=8):
                    changed = value[:byte] + bytes([value[byte] ^ 1]) + value[byte + 1 :]
                    form = "CAST(? AS TEXT)" if table == "events" else "?"
                    editor.execute(f"UPDATE {table} SET {column} = {form} WHERE {where}", (changed, *place))
                    if broken_at(folder) != place[0]:
                        missed.append((table, column, place[0], byte, broken_at(folder)))
                    now = [
                        changed if name == column else part for name, part in zip(keys.split(", "), place, strict=True)
                    ]
                    editor.execute(f"UPDATE {table} SET {column} = {form} WHERE {where}", (value, *now))
    assert broken_at(folder) is None
    assert missed == []


@pytest.mark.parametrize(
    ("edit", "first"),
    [
        ("DELETE FROM events WHERE seq = 3", 3),
        ("DELETE FROM events WHERE seq = 1", 1),
        ("UPDATE events SET seq = 9 WHERE seq = 5", 5),
        ("UPDATE events SET seq = 0 WHERE seq = 1", 1),
        ("UPDATE events SET once = NULL WHERE seq = 3", 3),
        ("UPDATE events SET once = 'sha256:9' WHERE seq = 4", 4),
        ("UPDATE events SET body = body || ' ' WHERE seq = 2", 2),
        ("UPDATE events SET body = CAST(body AS BLOB) || x'ff' WHERE seq = 2", 2),
        ('UPDATE events SET body = \'{"a":1,"a":1}\' WHERE seq = 4', 4),
        ("UPDATE events SET time = 7 WHERE seq = 2", 2),
        ("UPDATE events SET kind = CAST(kind AS BLOB) WHERE seq = 3", 3),
        ("UPDATE events SET once = CAST(once AS BLOB) WHERE seq = 3", 3),
        ("UPDATE records SET subject = 5 WHERE seq = 2", 2),
        ("UPDATE records SET record = CAST(record AS TEXT) WHERE seq = 2", 2),
        ("UPDATE records SET record = substr(record, 2), subject = subject || substr(record, 1, 1) WHERE seq = 2", 2),
        ("DELETE FROM records WHERE seq = 5", 5),
        ("DELETE FROM records WHERE seq = 1 AND subject = (SELECT subject FROM records WHERE seq = 5)", 1),
        ("UPDATE records SET seq = 4 WHERE seq = 2", 2),
        ("INSERT INTO records SELECT 4, subject, record FROM records WHERE seq = 2", 4),
        ("INSERT INTO records SELECT 77, subject, record FROM records WHERE seq = 2", 77),
        ("CREATE TABLE more (x)", 0),
        ("DROP INDEX events_once", 0),
        ("CREATE TRIGGER t AFTER INSERT ON events BEGIN DELETE FROM events WHERE seq = 1; END", 0),
    ],
)
def test_removed_moved_and_added_rows_are_found(
    folder: Path, editor: sqlite3.Connection, edit: str, first: int
) -> None:
    editor.execute(edit)
    assert broken_at(folder) == first


@pytest.mark.parametrize("columns", [["body"], ["time", "kind", "body", "previous", "digest", "once"]])
def test_swapped_rows_are_found(folder: Path, editor: sqlite3.Connection, columns: list[str]) -> None:
    rows = {
        seq: row for seq, *row in editor.execute(f"SELECT seq, {', '.join(columns)} FROM events WHERE seq IN (2, 4)")
    }
    for seq, other in ((2, 4), (4, 2)):
        marks = ", ".join(f"{name} = CAST(? AS TEXT)" for name in columns)
        editor.execute(f"UPDATE events SET {marks} WHERE seq = ?", (*rows[other], seq))
    assert broken_at(folder) == 2


@pytest.mark.slow
@FAULTS
def test_a_changed_byte_of_the_file_is_found_or_changes_nothing(folder: Path, faults: FaultPositions) -> None:
    path = folder / "ledger.db"
    whole = path.read_bytes()
    with Ledger.open(folder) as ledger:
        known = list(ledger.connection.iterdump())
    unseen = []
    places = [place for place, byte in enumerate(whole) if byte]
    for place in [places[number] for number in faults.of(len(places), size=400)]:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        try:
            with Ledger.open(folder) as ledger:
                ledger.verify()
                if list(ledger.connection.iterdump()) != known:
                    unseen.append(place)
        except ValueError:  # EvidenceBroken, or a format that is not known
            continue
        finally:
            for other in ("ledger.db-wal", "ledger.db-shm", "ledger.db-journal"):
                (folder / other).unlink(missing_ok=True)
    assert unseen == []


def test_only_the_signed_head_reveals_missing_events_at_the_end(folder: Path, editor: sqlite3.Connection) -> None:
    with Ledger.open(folder) as ledger:
        ledger.anchor()
        ledger.append("merge", {})
    editor.execute("DELETE FROM records WHERE seq = 6")
    editor.execute("DELETE FROM events WHERE seq = 6")
    assert broken_at(folder) is None, "what came after the signed head is not held by it"
    editor.execute("DELETE FROM records WHERE seq = 5")
    editor.execute("DELETE FROM events WHERE seq = 5")
    assert broken_at(folder) == 5
    with Ledger.open(folder) as ledger:
        with pytest.raises(EvidenceBroken):
            ledger.anchor()
        ledger.append("merge", {})
    assert broken_at(folder) == 5, "a new event in its place does not hide it"
    (folder / "anchor.json").unlink()
    assert broken_at(folder) is None


def test_the_signed_head_reveals_a_replaced_ledger(folder: Path, tmp_path: Path) -> None:
    with Ledger.open(folder) as ledger:
        ledger.anchor()
    with Ledger.open(tmp_path / "other", create=True) as other:
        for number in range(7):
            other.append(KINDS[number], {})
    shutil.copy(tmp_path / "other" / "ledger.db", folder / "ledger.db")
    assert broken_at(folder) == 5


@pytest.mark.parametrize("left", ["nothing", "an empty file", "a new ledger"])
def test_a_missing_ledger_with_a_signed_head_is_not_created_again(folder: Path, left: str) -> None:
    with Ledger.open(folder) as ledger:
        ledger.anchor()
    (folder / "ledger.db").unlink()
    if left == "an empty file":
        (folder / "ledger.db").touch()
    if left == "a new ledger":
        with Ledger.open(folder.parent / "new", create=True):
            pass
        shutil.copy(folder.parent / "new" / "ledger.db", folder / "ledger.db")
        assert broken_at(folder) == 1
        return
    with pytest.raises(EvidenceBroken, match="is missing or empty"):
        Ledger.open(folder, create=True)


def test_the_digest_of_an_event_is_computed_from_its_canonical_json() -> None:
    # Worked out by hand with sha256sum, so that another program can check the chain.
    said = '{"body":{"run":"é"},"kind":"training","previous":"sha256:0","seq":1,"time":"2026-01-01T00:00:00+00:00"}'
    import hashlib

    event = Event(1, "2026-01-01T00:00:00+00:00", "training", {"run": "é"}, "sha256:0", "")
    assert event.computed_digest() == "sha256:" + hashlib.sha256(said.encode()).hexdigest()


@pytest.mark.parametrize("seq", [1, 3, 5])
def test_a_rewritten_event_is_found_at_the_next_event_or_by_the_signed_head(folder, editor, seq) -> None:
    with Ledger.open(folder) as ledger:
        ledger.anchor()
        event = ledger.events()[seq - 1]
    forged = Event(event.seq, event.time, event.kind, {**event.body, "run": "another"}, event.previous, "")
    editor.execute(
        "UPDATE events SET body = CAST(? AS TEXT), digest = ? WHERE seq = ?",
        (canonical(forged.body), forged.computed_digest(), seq),
    )
    assert broken_at(folder) == min(seq + 1, 5)
    (folder / "anchor.json").unlink()
    assert broken_at(folder) == (seq + 1 if seq < 5 else None), "of the last event only the signed head knows"


def test_the_signed_head_reveals_a_chain_rewritten_from_an_edited_event(folder, editor) -> None:
    with Ledger.open(folder) as ledger:
        ledger.anchor()
        events = ledger.events()
    previous = events[1].digest
    for event in events[2:]:
        body = {**event.body, "run": "another"} if event.seq == 3 else event.body
        forged = Event(event.seq, event.time, event.kind, body, previous, "")
        previous = forged.computed_digest()
        editor.execute(
            "UPDATE events SET body = CAST(? AS TEXT), previous = ?, digest = ? WHERE seq = ?",
            (canonical(body), forged.previous, previous, event.seq),
        )
    assert broken_at(folder) == 5
    (folder / "anchor.json").unlink()
    assert broken_at(folder) is None


def test_ledger_and_keys_are_flushed_to_disk_at_every_commit(folder) -> None:
    with Ledger.open(folder) as ledger:
        ledger.append("merge", {}, records=[("Ann", "ann-1")])
        levels = [ledger.connection.execute(f"PRAGMA {name}.synchronous").fetchone()[0] for name in ("main", "keys")]
    assert levels == [3, 3], "EXTRA"
