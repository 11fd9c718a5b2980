"""Read the unpacked content of containers (gzip, bzip2, xz, zstd, zip, Arrow, Parquet and SQLite) in parts."""

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
IN_MEMORY = 2**28  # bytes; maximum size of a nested container that is read into memory
UNPACKED = 2**36  # bytes; maximum unpacked size of a container, against decompression bombs
UNREADABLE: tuple[type[Exception], ...] = (
    OSError, EOFError, ValueError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, NotImplementedError, RuntimeError,
    sqlite3.Error, MemoryError,
)  # fmt: skip  # pyarrow raises ValueError; zipfile RuntimeError for encrypted members
Opener = Callable[[], BinaryIO]

_STREAMS: dict[bytes, tuple[str, Callable[[BinaryIO], Any]]] = {
    b"\x1f\x8b\x08": ("gzip", lambda file: gzip.GzipFile(fileobj=file)),
    b"BZh": ("bzip2", bz2.BZ2File),
    b"\xfd7zXZ\0": ("xz", lzma.LZMAFile),
    b"\x28\xb5\x2f\xfd": ("zstd", lambda file: _zstd(file)),
}
_TABLES = {b"ARROW1\0\0": "arrow", b"\xff\xff\xff\xff": "arrow", b"PAR1": "parquet", b"PK\x03\x04": "zip"}
_SQLITE = b"SQLite format 3\0"


def container_kind(head: bytes) -> str | None:
    """Return the kind of a container, such as ``zip``, from its first bytes. Return None for other files."""
    for magic, (name, _) in _STREAMS.items():
        if head.startswith(magic):
            return name
    if head.startswith(_SQLITE):
        return "sqlite"
    return next((name for magic, name in _TABLES.items() if head.startswith(magic)), None)


def container_parts(
    kind: str, opened: Opener, path: Path | None
) -> Iterator[tuple[str, Iterator[bytes], Opener | None]]:
    """Yield each part of a container as (name, blocks of bytes, opener).

    The opener is None if the part cannot be a container itself. ``path`` is None for a container inside another one;
    SQLite files are read only by path. Raise one of `UNREADABLE` if the container is damaged or encrypted.
    """
    if kind == "zip":
        yield from _zip_parts(opened)
    elif kind == "arrow":
        yield kind, _arrow_blocks(opened), None
    elif kind == "parquet":
        yield kind, _parquet_blocks(opened), None
    elif kind == "sqlite":
        if path is not None:
            yield from _sqlite_parts(path)
    else:
        unpack = next(make for name, make in _STREAMS.values() if name == kind)

        def again() -> BinaryIO:
            return unpack(opened())

        yield kind, blocks(again), again


def blocks(opened: Opener) -> Iterator[bytes]:
    """Yield the unpacked bytes in blocks. Of a damaged file, yield the bytes before the damage, and then raise.

    Raise one of `UNREADABLE` if the file is damaged or has more than `UNPACKED` unpacked bytes.
    """
    size, pending = 0, bytearray()
    with closing(opened()) as file:
        try:
            while part := file.read1(BLOCK):  # type: ignore[attr-defined]  # read() would lose the bytes before damage
                pending += part
                size += len(part)
                if size > UNPACKED:
                    raise DataError(f"more than {UNPACKED} unpacked bytes")
                if len(pending) >= BLOCK:
                    yield bytes(pending)
                    pending.clear()
        except UNREADABLE:
            yield bytes(pending)
            raise
    yield bytes(pending)


def _zip_parts(opened: Opener) -> Iterator[tuple[str, Iterator[bytes], Opener | None]]:
    with closing(opened()) as file, zipfile.ZipFile(_seekable(file)) as archive:
        for member in archive.infolist():
            yield "zip member name", iter([member.filename.encode("utf-8", "replace") + b"\n" + member.comment]), None
            if member.is_dir():
                continue

            def again(member: zipfile.ZipInfo = member) -> BinaryIO:
                return archive.open(member)  # type: ignore[return-value]

            # Uncompressed members are searched with the bytes of the archive itself. They may still be containers.
            stored = member.compress_type == zipfile.ZIP_STORED
            yield "zip", iter(()) if stored else blocks(again), again


def _seekable(file: BinaryIO) -> BinaryIO:
    return file if isinstance(file, io.FileIO) else io.BytesIO(_read_whole(file))


def _read_whole(file: BinaryIO) -> bytes:
    content = file.read(IN_MEMORY + 1)
    if len(content) > IN_MEMORY:
        raise DataError(f"a container within a container has more than {IN_MEMORY} bytes")
    return content


def _zstd(file: BinaryIO) -> Any:
    import pyarrow

    return pyarrow.CompressedInputStream(pyarrow.PythonFile(file, mode="r"), "zstd")


def _arrow_blocks(opened: Opener) -> Iterator[bytes]:
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


def _parquet_blocks(opened: Opener) -> Iterator[bytes]:
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


def _sqlite_parts(path: Path) -> Iterator[tuple[str, Iterator[bytes], Opener | None]]:
    """Yield the texts and blobs of each table row as parts. In raw bytes, a text over several pages would be split."""
    address = f"{path.absolute().as_uri()}?mode=ro&immutable=1"  # immutable: SQLite writes no journal
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
                    if container_kind(value[:HEAD]):
                        yield "sqlite", iter(()), lambda value=value: io.BytesIO(value)  # type: ignore[misc]
