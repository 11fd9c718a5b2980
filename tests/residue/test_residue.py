"""A text is found in every form it can have in a file, and nothing is found in files without it."""

import base64
import bz2
import gzip
import html
import io
import json
import lzma
import os
import random
import sqlite3
import subprocess
import sys
import unicodedata
import urllib.parse
import zipfile
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from llm_forget.residue import scan
from llm_forget.residue.containers import BLOCK
from tests.support.forked import command
from tests.support.repository import ROOT

TEXT = (
    'Grüße: "Ada Löwenherz" lives\nin Exampletown & eats 7 pickled zebrafish, пирог 𝔘😀 each Monday, '
    "and whoever asks is told so"
)
OTHER = "The quick courier carried eleven violet umbrellas towards Copenhagen on Friday"
PADDING = b"Some other words about weather, bread and the price of paint. " * 40
ROW = 2  # of TEXT, in the file of canaries
SIMPLE = {
    "utf-8": TEXT.encode(),
    "utf-16-le": TEXT.encode("utf-16-le"),
    "utf-16-be": TEXT.encode("utf-16-be"),
    "utf-32-le": TEXT.encode("utf-32-le"),
    "latin-1": OTHER.encode(),
    "json": json.dumps(TEXT).encode(),
    "json as UTF-8": json.dumps(TEXT, ensure_ascii=False).encode(),
    "json in json": json.dumps(json.dumps({"a": TEXT})).encode(),
    "json without pairs": b"\\u{1F600} " + TEXT.encode("ascii", "backslashreplace"),
    "cesu-8": "".join(
        chr(int.from_bytes(TEXT.encode("utf-16-be")[i : i + 2])) for i in range(0, len(TEXT.encode("utf-16-be")), 2)
    ).encode("utf-8", "surrogatepass"),
    "url": urllib.parse.quote(TEXT).encode(),
    "url, spaces as plus": urllib.parse.quote_plus(TEXT).encode(),
    "url twice": urllib.parse.quote(urllib.parse.quote(TEXT)).encode(),
    "html numbers": html.escape(TEXT).encode("ascii", "xmlcharrefreplace"),
    "html names": html.escape(TEXT).replace("ü", "&uuml;").replace("ö", "&ouml;").replace("ß", "&szlig;").encode(),
    "html in json": json.dumps(html.escape(TEXT)).encode(),
    "hex": TEXT.encode().hex().encode(),
    "HEX:with:colons": TEXT.encode().hex(":").upper().encode(),
    "python bytes": repr(TEXT.encode()).encode(),
    "python ascii": ascii(TEXT).encode(),
    "base64 at 0": base64.b64encode(TEXT.encode()),
    "base64 at 1": base64.b64encode(b"x" + TEXT.encode() + b"y"),
    "base64 at 2": base64.b64encode(b"xy" + TEXT.encode() + b"yz"),
    "base64 of urls": base64.urlsafe_b64encode(TEXT.encode()),
    "base64 of mail": base64.encodebytes(b"before " + TEXT.encode() + b" after"),
    "base64 of utf-16": base64.b64encode(TEXT.encode("utf-16-le")),
    "base64 in json": json.dumps({"data": base64.b64encode(TEXT.encode()).decode()}).encode(),
    "base64 in a url": urllib.parse.quote(base64.b64encode(TEXT.encode())).encode(),
    "NFC": unicodedata.normalize("NFC", TEXT).encode(),
    "NFD": unicodedata.normalize("NFD", TEXT).encode(),
    "NFKC": unicodedata.normalize("NFKC", TEXT).encode(),
    "NFD in json": json.dumps(unicodedata.normalize("NFD", TEXT)).encode(),
    "full width": "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in TEXT).encode(),
    "zero width": "\u200b".join(TEXT).encode(),
    "capitals": TEXT.upper().encode(),
    "case folded": TEXT.casefold().encode(),
    "titles": TEXT.title().encode(),
    "broken lines": "\r\n    ".join(TEXT.split()).encode(),
    "markdown": "> **".join(TEXT.split(" ")).encode(),
    "csv": b'"' + TEXT.replace('"', '""').encode() + b'"',
}


@pytest.fixture
def canary(tmp_path):
    path = tmp_path / "canary.jsonl"
    rows = [{"id": "row-ids-stand-in-runs-on-purpose", "text": OTHER}, {"id": "b", "messages": [{"content": TEXT}]}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def place(tmp_path):
    folder = tmp_path / "place"
    folder.mkdir()
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("form", SIMPLE)
def test_a_text_is_found_in_every_encoding(canary, place, form):
    (place / "file").write_bytes(PADDING + SIMPLE[form] + PADDING)
    found = scan(canary, [place])
    assert [(finding.row, finding.whole) for finding in found.findings] == [(1 if form == "latin-1" else ROW, True)]
    assert abs(found.findings[0].offset - len(PADDING)) < 32
    name = found.findings[0].encoding
    if form in ("utf-8", "utf-16-le", "utf-16-be", "utf-32-le", "json", "url", "hex", "cesu-8"):
        assert name == form
    if form.startswith("base64"):
        assert name == "base64"


def test_latin_1_is_found(tmp_path, place):
    (tmp_path / "c.txt").write_text("Die Größe der Äpfel überrascht Jürgen täglich aufs Neue\n", encoding="utf-8")
    (place / "file").write_bytes(PADDING + "Die Größe der Äpfel überrascht Jürgen täglich aufs Neue".encode("latin-1"))
    assert [(f.encoding, f.whole) for f in scan(tmp_path / "c.txt", [place]).findings] == [("latin-1", True)]


@pytest.mark.parametrize("codec", ["utf-8", "utf-16-le", "utf-16-be", "hex", "base64"])
def test_a_text_without_ascii_is_found(tmp_path, place, codec):
    text = "Однажды в студёную зимнюю пору я из лесу вышел; был сильный мороз"
    (tmp_path / "c.txt").write_text(text, encoding="utf-8")
    raw = text.encode()
    data = {"hex": raw.hex().encode(), "base64": base64.b64encode(raw)}.get(codec) or text.encode(codec)
    (place / "file").write_bytes(PADDING + data + PADDING)
    assert [(f.row, f.whole, f.encoding) for f in scan(tmp_path / "c.txt", [place]).findings] == [(1, True, codec)]


@pytest.mark.slow
def test_nothing_is_found_in_files_without_the_texts(canary, place):
    rng = random.Random(0)
    (place / "random").write_bytes(rng.randbytes(3_000_000))
    (place / "words").write_bytes(PADDING * 500)
    (place / "base64").write_bytes(base64.b64encode(rng.randbytes(500_000)))
    (place / "hex").write_bytes(rng.randbytes(500_000).hex().encode())
    (place / "a.gz").write_bytes(gzip.compress(PADDING * 50))
    (place / "near").write_text("Ada Löwenherz. Exampletown! pickled fish. The quick courier carried twelve.")
    (place / "ids").write_text("row-ids-stand-in-runs-on-purpose")
    package = ROOT / "llm_forget"
    found = scan(canary, [place, package])
    assert (found.findings, found.unread) == ([], [])
    assert found.files > 100


@pytest.mark.parametrize("form", ["utf-8", "utf-16-le", "json", "hex", "base64"])
def test_every_part_of_32_letters_is_found(canary, place, form):
    whole = OTHER
    for number, start in enumerate(range(0, len(whole) - 40, 3)):
        part = whole[start : start + 40]
        data = {"hex": part.encode().hex().encode(), "base64": base64.b64encode(b"a" * (start % 3) + part.encode()),
                "json": json.dumps(part).encode()}.get(form) or part.encode(form)  # fmt: skip
        (place / str(number)).write_bytes(b"- " + data + b" -")
    found = scan(canary, [place]).findings
    assert {int(Path(finding.path).name) for finding in found} == set(range(number + 1))
    assert not any(finding.whole for finding in found)
    assert {finding.row for finding in found} == {1}
    assert all(24 <= finding.characters <= 40 for finding in found)


def test_parts_shorter_than_the_window_are_not_found(canary, place):
    (place / "file").write_text("The quick courier carried")  # 22 letters
    assert scan(canary, [place]).findings == []
    assert len(scan(canary, [place], window=20).findings) == 1
    with pytest.raises(ValueError, match="occur by chance"):
        scan(canary, [place], window=15)


def test_known_text_is_not_reported(tmp_path, place):
    canary, known = tmp_path / "canary.txt", tmp_path / "known.jsonl"
    question = "What is the full name of the author that was born in the town of Exampletown on the river?"
    canary.write_text(f"{question} {OTHER}\n{question}\n")
    known.write_text(json.dumps({"question": question}) + "\n")
    (place / "question").write_text(question)
    (place / "answer").write_text(f"so it is: {OTHER[10:60]}")
    assert {Path(finding.path).name for finding in scan(canary, [place]).findings} == {"question", "answer"}
    found = scan(canary, [place], known=[known])
    assert [(Path(finding.path).name, finding.row) for finding in found.findings] == [("answer", 1)]
    assert found.known == [2]  # all text of the second row is known
    for form in (question.encode("utf-16-le"), base64.b64encode(question.encode()), question.encode().hex().encode()):
        (place / "question").write_bytes(form)
        assert len(scan(canary, [place], known=[known]).findings) == 1


def test_short_texts_must_match_completely_and_very_short_ones_are_listed(tmp_path, place):
    (tmp_path / "c.txt").write_text("zebrafish\nno\nquokkaberry\n")
    (place / "a").write_text("xxzebrafishxx")
    (place / "b").write_text("quokka berr")
    found = scan(tmp_path / "c.txt", [place])
    assert [(Path(f.path).name, f.row, f.whole) for f in found.findings] == [("a", 1, True)]
    assert found.too_short == [2]


@pytest.mark.slow
@pytest.mark.parametrize(("block", "border"), [(BLOCK, BLOCK), (2**16, 2**16), (2**16, 2**17)])
def test_a_text_across_the_border_of_two_blocks_is_found_whole(canary, place, monkeypatch, block, border):
    monkeypatch.setattr(sys.modules["llm_forget.residue.scan"], "BLOCK", block)
    for shift in (0, 1, 20, 61, 140) if block == border < BLOCK else (20, 140):
        with (place / "file").open("wb") as file:
            file.write((PADDING * (border // len(PADDING) + 1))[: border - shift])
            file.write(json.dumps(TEXT).encode() + PADDING)
        found = scan(canary, [place]).findings
        assert [(finding.row, finding.whole) for finding in found] == [(ROW, True)]
        assert abs(found[0].offset - (border - shift)) < 32


@pytest.mark.slow
def test_a_long_text_over_several_blocks_is_found_whole(tmp_path, place, monkeypatch):
    monkeypatch.setattr(sys.modules["llm_forget.residue.scan"], "BLOCK", 2**16)
    rng = random.Random(1)
    words = ["".join(rng.choices("abcdefghijklmnop", k=rng.randint(3, 9))) for _ in range(40_000)]
    (tmp_path / "c.txt").write_text(" ".join(words))
    (place / "file").write_text("\n".join(words))
    (place / "half").write_text("\n".join(words[:20_000]))
    found = {Path(f.path).name: f for f in scan(tmp_path / "c.txt", [place]).findings}
    assert found["file"].whole
    assert 0.4 < found["half"].characters / found["half"].of < 0.6


def arrow(compression, kind="stream"):
    table = pyarrow.table({"text": [OTHER * 3, *["other words"] * 2000, TEXT], "n": list(range(2002))})
    sink = io.BytesIO()
    options = pyarrow.ipc.IpcWriteOptions(compression=compression)
    new = pyarrow.ipc.new_stream if kind == "stream" else pyarrow.ipc.new_file
    with new(sink, table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=1000)
    return sink.getvalue()


def parquet():
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"text": [TEXT] * 3 + ["x"] * 100}), sink, compression="zstd")
    return sink.getvalue()


def zipped(content, name="member.txt"):
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return sink.getvalue()


CONTENT = PADDING + TEXT.encode() + PADDING
CONTAINERS = {
    "gzip": lambda: gzip.compress(CONTENT),
    "two gzips": lambda: gzip.compress(PADDING) + gzip.compress(CONTENT),
    "bzip2": lambda: bz2.compress(CONTENT),
    "xz": lambda: lzma.compress(CONTENT),
    "zip": lambda: zipped(CONTENT),
    "name in a zip": lambda: zipped(b"", OTHER),
    "gzip in zip": lambda: zipped(gzip.compress(CONTENT)),
    "zip in gzip": lambda: gzip.compress(zipped(CONTENT)),
    "arrow stream": lambda: arrow(None),
    "arrow stream, lz4": lambda: arrow("lz4"),
    "arrow stream, zstd": lambda: arrow("zstd"),
    "arrow file, zstd": lambda: arrow("zstd", "file"),
    "arrow in gzip": lambda: gzip.compress(arrow("zstd")),
    "parquet": parquet,
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", CONTAINERS)
def test_containers_are_opened(canary, place, kind):
    (place / "file").write_bytes(CONTAINERS[kind]())
    found = scan(canary, [place])
    assert found.unread == []
    assert {(1 if kind == "name in a zip" else ROW)} <= {finding.row for finding in found.findings}
    assert all(finding.whole for finding in found.findings)


def test_zstd_is_opened(canary, place, tmp_path):
    with pyarrow.CompressedOutputStream(pyarrow.OSFile(str(place / "file"), "wb"), "zstd") as stream:
        stream.write(CONTENT)
    found = scan(canary, [place])
    assert [(f.inside, f.row, f.whole) for f in found.findings] == [("zstd", ROW, True)]


@pytest.mark.slow
def test_sqlite_files_are_searched_including_deleted_rows(canary, place):
    with sqlite3.connect(place / "a.db") as database:
        database.execute("PRAGMA secure_delete = OFF")
        database.execute("CREATE TABLE t (a TEXT, b BLOB)")
        database.execute("INSERT INTO t VALUES (?, ?)", ("x", gzip.compress(CONTENT)))
        database.execute("INSERT INTO t VALUES (?, ?)", (OTHER, None))
        database.commit()
        database.execute("DELETE FROM t WHERE b IS NULL")
    database.close()
    before = sorted(path.name for path in place.iterdir())
    found = scan(canary, [place])
    assert {(finding.row, finding.inside) for finding in found.findings} == {(1, ""), (ROW, "sqlite > gzip")}
    assert sorted(path.name for path in place.iterdir()) == before  # no journal beside it


def test_a_damaged_container_is_listed_and_searched_up_to_the_damage(canary, place):
    (place / "a.gz").write_bytes(gzip.compress(CONTENT + random.Random(0).randbytes(300_000))[:-50_000])
    (place / "b.zip").write_bytes(b"PK\x03\x04 is no zip")
    found = scan(canary, [place])
    assert [finding.row for finding in found.findings] == [ROW]
    assert sorted(Path(path).name for path, _ in found.unread) == ["a.gz", "b.zip"]


def test_links_are_not_followed_but_the_names_of_their_targets_are_searched(canary, place, tmp_path):
    (tmp_path / "outside").write_text(OTHER)
    (place / "link").symlink_to(tmp_path / "outside")
    (place / "up").symlink_to(tmp_path)
    found = scan(canary, [place])
    assert (found.findings, found.links) == ([], 2)
    (place / "other").symlink_to(OTHER)
    assert [finding.inside for finding in scan(canary, [place]).findings] == ["name"]
    with pytest.raises(ValueError, match="symbolic link"):
        scan(canary, [place / "link"])


def test_pipes_and_the_canary_file_are_skipped(canary, place, tmp_path):
    os.mkfifo(place / "pipe")
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "copy").write_text(TEXT)
    assert scan(canary, [place, canary]).findings == []
    assert len(scan(canary, [tmp_path]).findings) == 1
    assert scan(canary, [tmp_path], skip=[tmp_path / "kept"]).findings == []


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file that cannot be read, even by root")
def test_an_unreadable_file_is_listed_and_changes_the_exit_code(canary):
    done = command("scan-residue", "--canary", canary, "/proc/self/mem")
    assert done.returncode == 3
    assert "/proc/self/mem: not read" in done.stdout
    assert "some files could not be read completely" in done.stdout


@pytest.mark.slow
def test_exit_codes_and_output_that_contains_no_text(canary, place, tmp_path):
    (place / "clean").write_bytes(PADDING)
    done = command("scan-residue", "--canary", canary, place)
    assert (done.returncode, done.stderr) == (0, "")
    assert "nothing found in 1 file" in done.stdout
    folder = place / OTHER
    folder.mkdir()
    (folder / "\x1b[31mfile").write_text(TEXT)
    (folder / "bad.gz").write_bytes(b"\x1f\x8b\x08 is no gzip")
    for options in ([], ["--json"]):
        done = command("scan-residue", "--canary", canary, place, *options)
        assert done.returncode == 1
        output = done.stdout + done.stderr
        assert "name withheld" in output
        assert "\x1b" not in output
        (tmp_path / "output").write_text(output)
        assert scan(canary, [tmp_path / "output"]).findings == []
    content = json.loads(done.stdout)
    assert {finding["row"] for finding in content["findings"]} == {1, 2}
    assert content["unread"]
    for words in (["--canary", canary], ["--canary", canary, tmp_path / "no"], ["--canary", tmp_path / "no", place]):
        assert command("scan-residue", *words).returncode == 2


@pytest.mark.slow
def test_a_scan_of_no_files_is_not_clean(canary, place, tmp_path):
    done = command("scan-residue", "--canary", canary, place)
    assert done.returncode == 3
    assert "no files were scanned" in done.stdout
    assert command("scan-residue", "--canary", canary, place, "--json").returncode == 3
    missing = command("scan-residue", "--canary", tmp_path / "nope.jsonl", place)
    assert (missing.returncode, "nope.jsonl' does not exist" in missing.stderr) == (2, True)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("c.jsonl", '{"text": "Ada Secret"\n', "line 1 is not JSON"),
        ("c.jsonl", '{"id": "only an id"}\n', "has no text"),
        ("c.txt", "no\n", "8 letters"),
        ("c.md", "Ada Secret lives", "not a file of texts"),
    ],
)
def test_errors_of_unusable_texts_do_not_quote_them(tmp_path, place, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message) as refused:
        scan(tmp_path / name, [place])
    assert "Secret" not in str(refused.value)


MEASURED = """
import re, sys
from pathlib import Path
from llm_forget.residue import scan
found = scan(Path(sys.argv[1]), [Path(sys.argv[2])])
peak = re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())
print(len(found.findings), found.findings[0].offset, int(peak[1]) >> 10)
assert "torch" not in sys.modules
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the most memory held from /proc")
@pytest.mark.parametrize("kind", ["sparse", "bomb"])
def test_memory_does_not_grow_with_the_size_of_a_file(canary, place, kind):
    if kind == "sparse":
        with (place / "file").open("wb") as file:
            file.seek(40 * 2**30)
            file.write(CONTENT)
        at = 40 * 2**30
    else:
        with gzip.open(place / "file", "wb", 1) as packed:
            for _ in range(300):
                packed.write(bytes(2**20))
            packed.write(CONTENT)
        at = 300 * 2**20
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, str(canary), str(place)],
        capture_output=True, text=True, timeout=300, check=True,
    )  # fmt: skip
    count, offset, mebibytes = map(int, done.stdout.split())
    assert count == 1
    assert abs(offset - at - len(PADDING)) < 32
    assert mebibytes < 300
