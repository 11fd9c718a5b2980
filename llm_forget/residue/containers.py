"""What lies packed inside of files: streams of bytes out of gzip, bzip2, xz, zstd, zip, Arrow, Parquet and SQLite."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import sqlite3
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, BinaryIO

from llm_forget.core.errors import DataError

BLOCK = 2**20
HEAD = 16
IN_MEMORY = 2**28  # bytes of a packed file within a packed file that must be held to be read
UNPACKED = 2**36  # bytes at most out of one container: a bomb must not keep a scan busy for ever
UNREADABLE: tuple[type[Exception], ...] = (
    OSError, EOFError, ValueError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, NotImplementedError, RuntimeError,
    sqlite3.Error, MemoryError,
)  # fmt: skip  # ValueError: pyarrow's, too; RuntimeError: encrypted members of a zip
Opener = Callable[[], BinaryIO]

_STREAMS: dict[bytes, tuple[str, Callable[[BinaryIO], Any]]] = {
    b"\x1f\x8b\x08": ("gzip", lambda file: gzip.GzipFile(fileobj=file)),
    b"BZh": ("bzip2", bz2.BZ2File),
    b"\xfd7zXZ\0": ("xz", lzma.LZMAFile),
    b"\x28\xb5\x2f\xfd": ("zstd", lambda file: _zstd(file)),
}
_TABLES = {b"ARROW1\0\0": "arrow", b"\xff\xff\xff\xff": "arrow", b"PAR1": "parquet", b"PK\x03\x04": "zip"}
_SQLITE = b"SQLite format 3\0"


def container(head: bytes) -> str | None:
    """The kind of container that begins like this."""
    for magic, (name, _) in _STREAMS.items():
        if head.startswith(magic):
            return name
    if head.startswith(_SQLITE):
        return "sqlite"
    return next((name for magic, name in _TABLES.items() if head.startswith(magic)), None)


def inside(kind: str, opened: Opener, path: Path | None) -> Iterator[tuple[str, Iterator[bytes], Opener | None]]:
    """Parts of a container: a name, its bytes block by block, and how to open it again where it may be packed itself.

    ``path`` is the file itself where the container is one, None where it lies within another.

    Raises:
        UNREADABLE: damaged, encrypted, or of a kind that only its name says.
    """
    if kind == "zip":
        yield from _members(opened)
    elif kind == "arrow":
        yield kind, _arrow(opened), None
    elif kind == "parquet":
        yield kind, _parquet(opened), None
    elif kind == "sqlite":
        if path is not None:
            yield from _values(path)
    else:
        unpack = next(make for name, make in _STREAMS.values() if name == kind)

        def again() -> BinaryIO:
            return unpack(opened())  # type: ignore[no-any-return]

        yield kind, blocks(again), again


def blocks(opened: Opener, limit: int = UNPACKED) -> Iterator[bytes]:
    """All bytes that come out of a packed file, block by block; of a damaged one those before the damage.

    Raises:
        UNREADABLE: damaged, or more than ``limit`` bytes.
    """
    read, held = 0, bytearray()
    with closing(opened()) as file:
        try:
            while part := file.read1(BLOCK):  # type: ignore[attr-defined]  # not read(): at damage it gives nothing
                held += part
                read += len(part)
                if read > limit:
                    raise DataError(f"more than {limit} bytes come out of it")
                if len(held) >= BLOCK:
                    yield bytes(held)
                    held.clear()
        except UNREADABLE:
            yield bytes(held)
            raise
    yield bytes(held)


def _members(opened: Opener) -> Iterator[tuple[str, Iterator[bytes], Opener | None]]:
    with closing(opened()) as file, zipfile.ZipFile(_seekable(file)) as archive:
        for member in archive.infolist():
            yield "zip member name", iter([member.filename.encode("utf-8", "replace") + b"\n" + member.comment]), None
            if member.is_dir():
                continue

            def again(member: zipfile.ZipInfo = member) -> BinaryIO:
                return archive.open(member)  # type: ignore[return-value]

            # What is stored as it is was read with the file itself, unless it is packed in itself.
            stored = member.compress_type == zipfile.ZIP_STORED
            yield "zip", iter(()) if stored else blocks(again), again


def _seekable(file: BinaryIO) -> BinaryIO:
    return file if isinstance(file, io.FileIO) else io.BytesIO(_held(file))


def _held(file: BinaryIO) -> bytes:
    content = file.read(IN_MEMORY + 1)
    if len(content) > IN_MEMORY:
        raise DataError(f"a container within another of more than {IN_MEMORY} bytes")
    return content


def _zstd(file: BinaryIO) -> Any:
    import pyarrow

    stream = pyarrow.CompressedInputStream(pyarrow.PythonFile(file, mode="r"), "zstd")
    return io.BufferedReader(_Readable(stream), BLOCK)


class _Readable(io.RawIOBase):
    """A stream of pyarrow as Python's own."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content = self.stream.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)


def _arrow(opened: Opener) -> Iterator[bytes]:
    import pyarrow

    with closing(opened()) as file:
        if file.read(6) == b"ARROW1":
            file.seek(0)
            reader = pyarrow.ipc.open_file(pyarrow.PythonFile(_seekable(file), mode="r"))
            batches = (reader.get_batch(number) for number in range(reader.num_record_batches))
        else:
            file.seek(0)
            batches = iter(pyarrow.ipc.open_stream(pyarrow.PythonFile(file, mode="r")))
        for batch in batches:
            yield from _buffers(batch)


def _parquet(opened: Opener) -> Iterator[bytes]:
    import pyarrow.parquet

    with closing(opened()) as file, pyarrow.parquet.ParquetFile(_seekable(file)) as table:
        for batch in table.iter_batches(1000):
            yield from _buffers(batch)


def _buffers(batch: Any) -> Iterator[bytes]:
    import pyarrow

    for column in batch.columns:
        arrays = [column, column.dictionary] if pyarrow.types.is_dictionary(column.type) else [column]
        for buffer in (buffer for array in arrays for buffer in array.buffers() if buffer is not None):
            content = memoryview(buffer)
            for start in range(0, len(content), BLOCK):
                yield bytes(content[start : start + BLOCK])


def _values(path: Path) -> Iterator[tuple[str, Iterator[bytes], Opener | None]]:
    """Texts of all tables, whole where a page cuts them; values that are packed, to be opened."""
    address = f"{path.absolute().as_uri()}?mode=ro&immutable=1"  # without a journal of its own
    with closing(sqlite3.connect(address, uri=True)) as database:
        database.text_factory = bytes
        tables = database.execute(
            "SELECT name FROM sqlite_master WHERE type = 'table' AND sql NOT LIKE 'CREATE VIRTUAL%'"
        )
        for (name,) in tables.fetchall():
            quoted = name.decode("utf-8", "replace").replace('"', '""')
            for row in database.execute(f'SELECT * FROM "{quoted}"'):
                texts = [value for value in row if isinstance(value, bytes)]
                yield "sqlite", iter([b"\n".join(texts)]) if texts else iter(()), None
                for value in texts:
                    if container(value[:HEAD]):
                        yield "sqlite", iter(()), lambda value=value: io.BytesIO(value)  # type: ignore[misc]
