"""Search files for parts of texts, also inside containers such as archives, and list the places of all matches."""

import errno
import io
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from llm_forget.core.errors import DataError
from llm_forget.core.text import plain
from llm_forget.residue.containers import BLOCK, HEAD, UNREADABLE, Opener, container_kind, container_parts
from llm_forget.residue.known_text import remove_known_text
from llm_forget.residue.needles import SearchText, read_texts
from llm_forget.residue.search import Hit, Searcher

WINDOW = 24  # default minimum length of a match, in letters and digits
DEPTH = 4  # maximum depth of nested containers
Item = TypeVar("Item")


@dataclass(frozen=True)
class Finding:
    """A match of a row's text in a file."""

    path: str
    inside: str  # containers, such as "gzip > zip"; "" for the file itself, "name" for the file name
    row: int  # number of the row from 1
    offset: int  # position in bytes
    encoding: str
    characters: int  # number of letters and digits that match
    of: int  # number of letters and digits in the whole text

    @property
    def whole(self) -> bool:
        return self.characters >= self.of


@dataclass
class Scan:
    """The result of a scan: findings, files that could not be read, and counts."""

    findings: list[Finding] = field(default_factory=list)
    unread: list[tuple[str, str]] = field(default_factory=list)  # (file, reason)
    too_short: list[int] = field(default_factory=list)  # numbers of rows with a text too short to search for
    known: list[int] = field(default_factory=list)  # numbers of rows whose texts are all in known files
    links: int = 0  # number of symbolic links, which are not followed
    files: int = 0  # number of files searched
    bytes: int = 0  # number of bytes searched

    def as_dict(self) -> dict[str, Any]:
        """Return the result as JSON-compatible data, without any text."""
        return {
            "findings": [{**vars(finding), "whole": finding.whole} for finding in self.findings],
            "unread": [{"path": path, "why": why} for path, why in self.unread],
            "rows_too_short": self.too_short,
            "rows_known": self.known,
            "symbolic_links": self.links,
            "files": self.files,
            "bytes": self.bytes,
        }

    def lines(self, shown: int) -> Iterator[str]:
        """Yield the lines of the report, with at most ``shown`` findings per file."""
        by_file: dict[str, list[Finding]] = {}
        for finding in self.findings:
            by_file.setdefault(finding.path, []).append(finding)
        for path, findings in by_file.items():
            for finding in findings[:shown]:
                extent = "whole" if finding.whole else "part"
                where = "in its name" if finding.inside == "name" else f"{finding.encoding} at byte {finding.offset:,}"
                way = f" inside {finding.inside}" if finding.inside not in ("", "name") else ""
                length = f"{extent} ({finding.characters} of {finding.of} letters)"
                yield f"{plain(path)}: row {finding.row}, {where}{way}, {length}"
            if len(findings) > shown:
                yield f"{plain(path)}: {len(findings) - shown} more; all with --json"
        for path, why in self.unread:
            yield f"{plain(path)}: not read completely ({why})"
        if self.too_short:
            yield f"not searched for, too short: texts of rows {_numbers(self.too_short)}"
        if self.known:
            yield f"not searched for, known: rows {_numbers(self.known)}"
        links = f"; {self.links} symbolic links not followed" if self.links else ""
        files = f"{self.files} file{'' if self.files == 1 else 's'}, {self.bytes / 2**20:,.1f} MiB{links}"
        rows = len({finding.row for finding in self.findings})
        if not (self.files or self.findings or self.unread):
            yield f"no files were scanned; the result is empty, not clean{links}"
        elif self.findings:
            yield f"found {rows} {'row' if rows == 1 else 'rows'} in {len(by_file)} places, of {files}"
        else:
            yield f"nothing found in {files}{', but some files could not be read completely' if self.unread else ''}"


def scan(
    canary: Path,
    paths: Sequence[Path],
    *,
    known: Sequence[Path] = (),
    skip: Sequence[Path] = (),
    fields: Sequence[str] = (),
    window: int = WINDOW,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Scan:
    """Search files for the texts in the file ``canary``. The result contains no text.

    Args:
        canary: file with rows (.jsonl, .json, .csv, .parquet) or lines (.txt). The scan skips this file.
        paths: files, and folders whose files are searched. Symbolic links are not followed.
        known: files with texts that may remain, such as a retain set. Parts of ``canary`` in them are not searched for.
        skip: further files that are not searched.
        fields: search only for texts in these columns (default: all columns except ``id`` and ``role``).
        window: minimum match length in letters and digits. A shorter text (of at least 8) must match completely.
        progress: called with (bytes read so far, total bytes).

    Raises:
        DataError: a path does not exist or is a link, or there is no text to search for.
    """
    if window < 16:
        raise DataError(f"--window is {window}; matches shorter than 16 letters occur by chance")
    for path in (*paths, *known, *(() if canary.exists() else (canary,))):
        if path.is_symlink() or not path.exists():
            reason = "is a symbolic link; give the path of its target" if path.is_symlink() else "does not exist"
            raise DataError(f"'{path}' {reason}")
    texts, result = read_texts(canary, fields), Scan()
    if known:
        rows = {text.row for text in texts}
        texts = _remove_known_texts(texts, known, window)
        result.known = sorted(rows - {text.row for text in texts})
    searcher = Searcher(texts, window)
    result.too_short = sorted({texts[number].row for number in searcher.short})
    if not searcher.simple.needles:
        raise DataError(f"'{canary}' has no unknown text of at least 8 letters to search for")
    walk = _Walk(searcher, result, [_identity(path) for path in (canary, *known, *skip) if path.exists()])
    files = [file for path in paths for file in walk.files(path)]
    total, done = sum(size for _, size in files), 0
    for path, size in files:
        walk.search_file(path, lambda read, done=done: progress(done + read, total))  # type: ignore[misc]
        done += size
        progress(done, total)
    return result


def _remove_known_texts(texts: Sequence[SearchText], known_paths: Sequence[Path], window: int) -> list[SearchText]:
    remaining = list(texts)
    for path in known_paths:
        searcher = Searcher(remaining, window)
        try:
            matches = searcher.matches(_blocks(_opener(path)))
        except OSError as error:
            raise DataError(f"'{path}' cannot be read ({error.strerror}); --known must be a file") from None
        remaining = remove_known_text(remaining, searcher.simple.needles, matches, window)
    return remaining


@dataclass
class _Walk:
    """A search through files, one after the other. It adds findings, unreadable files and counts to ``result``."""

    searcher: Searcher
    result: Scan
    skipped: list[tuple[int, int]]  # (device, inode) of files that are not searched

    def files(self, path: Path) -> Iterator[tuple[Path, int]]:
        """Yield (file, size in bytes) for all regular files in ``path``, and search the names of files and folders.

        Count links, and record folders that cannot be listed.
        """
        waiting = [path]
        while waiting:
            path = waiting.pop()
            try:
                status = path.lstat()
                if (status.st_dev, status.st_ino) in self.skipped:
                    continue
                if stat.S_ISLNK(status.st_mode):
                    self.result.links += 1
                    self._search_name(path, os.fsencode(os.readlink(path)))
                elif stat.S_ISDIR(status.st_mode):
                    waiting += sorted((Path(inner.path) for inner in os.scandir(path)), reverse=True)
                elif stat.S_ISREG(status.st_mode):
                    yield path, status.st_size
                self._search_name(path)
            except OSError as error:
                self._note_unread(path, "", error)

    def search_file(self, path: Path, progress: Callable[[int], None]) -> None:
        """Search one file, and its parts if it is a container."""
        try:
            opened = _opener(path)
            with opened() as file:
                head = file.read(HEAD)
        except OSError as error:
            self._note_unread(path, "", error)
            return
        self.result.files += 1

        def counted_blocks() -> Iterator[tuple[int, bytes]]:
            for start, block in _blocks(opened):
                self.result.bytes += len(block)
                progress(start + len(block))
                yield start, block

        self._add(path, "", self.searcher.search(self._readable(counted_blocks(), path, "")))
        self._unpack(path, "", head, opened, 1)

    def _unpack(self, path: Path, way: str, head: bytes, opened: Opener, depth: int) -> None:
        kind = container_kind(head)
        if kind is None:
            return
        if depth > DEPTH:
            self.result.unread.append((self._redacted_path(path), f"{way}: more than {DEPTH} nested containers"))
            return
        parts = container_parts(kind, opened, path if depth == 1 else None)
        for name, blocks, again in self._readable(parts, path, f"{way} > {kind}".removeprefix(" > ")):
            inner = f"{way} > {name}".removeprefix(" > ")
            stream = self._readable(_with_offsets(blocks), path, inner)
            self._add(path, inner, self.searcher.search(stream))
            for start in self._readable(_first_bytes(again), path, inner) if again is not None else ():
                self._unpack(path, inner, start, again, depth + 1)  # type: ignore[arg-type]

    def _readable(self, items: Iterator[Item], path: Path, way: str) -> Iterator[Item]:
        """Yield items until reading one fails, and record this error. Errors of the calling code are not caught."""
        while True:
            try:
                item = next(items)
            except StopIteration:
                return
            except UNREADABLE as error:
                self._note_unread(path, way, error)
                return
            yield item

    def _search_name(self, path: Path, name: bytes | None = None) -> None:
        self._add(path, "name", self.searcher.search([(0, os.fsencode(path.name) if name is None else name)]))

    def _add(self, path: Path, way: str, hits: list[Hit]) -> None:
        shown = self._redacted_path(path) if hits else ""
        self.result.findings += [
            Finding(shown, way, hit.row, hit.offset, hit.encoding, hit.characters, hit.of) for hit in hits
        ]

    def _redacted_path(self, path: Path) -> str:
        """Return the path as text. If a folder or file name contains a search text, end the path before this name."""
        withheld = False
        while self.searcher.search([(0, os.fsencode(path))]):
            path, withheld = path.parent, True
        return f"{path}/(name withheld)" if withheld else str(path)

    def _note_unread(self, path: Path, way: str, error: Exception) -> None:
        # Leave out the message of the error, which may quote text of the file.
        why = (error.strerror if isinstance(error, OSError) else None) or type(error).__name__
        self.result.unread.append((self._redacted_path(path), f"{way}: {why}".removeprefix(": ")))


def _numbers(rows: list[int]) -> str:
    return ", ".join(map(str, rows[:10])) + (f" and {len(rows) - 10} more" if len(rows) > 10 else "")


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _opener(path: Path) -> Opener:
    """Return a function that opens a file. If a link or pipe has replaced the file, it fails and does not wait."""
    flags = os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    return lambda: io.FileIO(path, "rb", opener=lambda name, _: os.open(name, flags))


def _blocks(opened: Opener) -> Iterator[tuple[int, bytes]]:
    """Yield the content of a file as (offset, block of bytes). Holes of sparse files are skipped."""
    with opened() as file:
        start = _next_data(file.fileno(), 0)
        while start is not None:
            file.seek(start)
            block = file.read(BLOCK)
            if not block:
                return
            yield start, block
            start += len(block)
            if not any(block[-1:]):  # a hole may start here
                start = _next_data(file.fileno(), start)


def _next_data(descriptor: int, start: int) -> int | None:
    try:
        return os.lseek(descriptor, start, os.SEEK_DATA)
    except OSError as error:  # ENXIO: only a hole follows; others: no support for SEEK_DATA
        return None if error.errno == errno.ENXIO else start


def _with_offsets(blocks: Iterator[bytes]) -> Iterator[tuple[int, bytes]]:
    start = 0
    for block in blocks:
        yield start, block
        start += len(block)


def _first_bytes(opened: Opener) -> Iterator[bytes]:
    with opened() as file:
        yield file.read(HEAD)
