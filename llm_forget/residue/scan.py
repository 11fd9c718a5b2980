"""Walk through files and folders, search every form of every block, and say where something of the texts is left."""

from __future__ import annotations

import errno
import io
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from llm_forget.core.errors import DataError
from llm_forget.residue.containers import BLOCK, HEAD, UNREADABLE, Opener, container, inside
from llm_forget.residue.known_text import without_known
from llm_forget.residue.needles import Sought, read_texts
from llm_forget.residue.search import Hit, Searcher

WINDOW = 24  # letters and digits in a row that are a find
DEPTH = 4  # containers within containers
Item = TypeVar("Item")


@dataclass(frozen=True)
class Finding:
    """Something of a row that is left: in which file, from which byte on, in which form, how much of the text."""

    path: str
    inside: str  # containers on the way, as "gzip > zip"; "" for the file itself, "name" for what it is called
    row: int
    offset: int
    encoding: str
    characters: int  # letters and digits in a row
    of: int  # of the whole text

    @property
    def whole(self) -> bool:
        return self.characters >= self.of


@dataclass
class Scan:
    """What a scan found, and what it could not look at."""

    findings: list[Finding] = field(default_factory=list)
    unread: list[tuple[str, str]] = field(default_factory=list)  # file, why
    too_short: list[int] = field(default_factory=list)  # rows with a text that was not looked for
    known: list[int] = field(default_factory=list)  # rows with a text all of which is known
    links: int = 0  # symbolic links, which are not followed
    files: int = 0
    bytes: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain data; no text and no name that holds one."""
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
        """Sentences for a terminal; of each file at most ``shown`` findings."""
        by_file: dict[str, list[Finding]] = {}
        for finding in self.findings:
            by_file.setdefault(finding.path, []).append(finding)
        for path, findings in by_file.items():
            for one in findings[:shown]:
                much = "whole" if one.whole else "part"
                where = "in its name" if one.inside == "name" else f"{one.encoding} at byte {one.offset:,}"
                way = f" inside {one.inside}" if one.inside not in ("", "name") else ""
                yield f"{_visible(path)}: row {one.row}, {where}{way}, {much} ({one.characters} of {one.of} letters)"
            if len(findings) > shown:
                yield f"{_visible(path)}: {len(findings) - shown} more; all with --json"
        for path, why in self.unread:
            yield f"{_visible(path)}: not read to its end ({why})"
        if self.too_short:
            yield f"not looked for, too short: texts of rows {_numbers(self.too_short)}"
        if self.known:
            yield f"not looked for, known: rows {_numbers(self.known)}"
        links = f"; {self.links} symbolic links not followed" if self.links else ""
        files = f"{self.files} file{'' if self.files == 1 else 's'}, {self.bytes / 2**20:,.1f} MiB{links}"
        rows = len({finding.row for finding in self.findings})
        if not (self.files or self.findings or self.unread):
            yield f"nothing was looked through, so this says nothing: there is no file to read{links}"
        elif self.findings:
            yield f"found {rows} {'row' if rows == 1 else 'rows'} in {len(by_file)} places, of {files}"
        else:
            yield f"nothing found in {files}{', but not all could be read' if self.unread else ''}"


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
    """Look for the texts of ``canary`` in all files below ``paths``; neither they nor names that hold them are shown.

    Args:
        canary: rows (.jsonl, .json, .csv, .parquet) or lines (.txt). This file itself is passed over.
        paths: files and folders. Symbolic links are not followed.
        known: files that may hold the same words; ``window`` letters in a row that occur in one are not counted.
        skip: files and folders to pass over.
        fields: look for the texts of these columns only; default: all but ``id``.
        window: letters and digits in a row that are a find; of a shorter text it takes all, at least 8.
        progress: called with the bytes read so far, and all.

    Raises:
        ValueError: a path that does not exist or is a link, or nothing to look for.
    """
    if window < 16:
        raise DataError(f"--window is {window}; fewer than 16 letters in a row are found by chance")
    for path in (*paths, *known, *(() if canary.exists() else (canary,))):
        if path.is_symlink() or not path.exists():
            what = "is a symbolic link; name what it points to" if path.is_symlink() else "does not exist"
            raise DataError(f"'{path}' {what}")
    texts, found = read_texts(canary, fields), Scan()
    if known:
        rows = {text.row for text in texts}
        texts = _without_known(texts, known, window)
        found.known = sorted(rows - {text.row for text in texts})
    searcher = Searcher(texts, window)
    found.too_short = sorted({texts[number].row for number in searcher.short})
    if not searcher.simple.needles:
        raise DataError(f"'{canary}' has no text of 8 letters or more that is not known; nothing was looked for")
    walk = _Walk(searcher, found, [_identity(path) for path in (canary, *known, *skip) if path.exists()])
    files = [file for path in paths for file in walk.files(path)]
    total, done = sum(size for _, size in files), 0
    for path, size in files:
        walk.search_file(path, lambda read, done=done: progress(done + read, total))  # type: ignore[misc]
        done += size
        progress(done, total)
    return found


def _without_known(texts: Sequence[Sought], known: Sequence[Path], window: int) -> list[Sought]:
    kept = list(texts)
    for path in known:
        searcher = Searcher(kept, window)
        try:
            matches = searcher.matches(_blocks(_opener(path)))
        except OSError as error:
            raise DataError(f"'{path}' cannot be read ({error.strerror}); --known names a file") from None
        kept = without_known(kept, searcher.simple.needles, matches, window)
    return kept


@dataclass
class _Walk:
    """Everything below some paths, one file after the other."""

    searcher: Searcher
    found: Scan
    passed_over: list[tuple[int, int]]

    def files(self, path: Path) -> Iterator[tuple[Path, int]]:
        """Regular files and their sizes; links are counted, what cannot be listed is noted."""
        waiting = [path]
        while waiting:
            path = waiting.pop()
            try:
                status = path.lstat()
                if (status.st_dev, status.st_ino) in self.passed_over:
                    continue
                if stat.S_ISLNK(status.st_mode):
                    self.found.links += 1
                    self._name(path, os.fsencode(os.readlink(path)))
                elif stat.S_ISDIR(status.st_mode):
                    waiting += sorted((Path(inner.path) for inner in os.scandir(path)), reverse=True)
                elif stat.S_ISREG(status.st_mode):
                    yield path, status.st_size
                self._name(path)
            except OSError as error:
                self._unread(path, "", error)

    def search_file(self, path: Path, progress: Callable[[int], None]) -> None:
        """One file, and what is packed in it."""
        try:
            opened = _opener(path)
            with opened() as file:
                head = file.read(HEAD)
        except OSError as error:
            self._unread(path, "", error)
            return
        self.found.files += 1

        def counted() -> Iterator[tuple[int, bytes]]:
            for start, block in _blocks(opened):
                self.found.bytes += len(block)
                progress(start + len(block))
                yield start, block

        self._add(path, "", self.searcher.search(self._guarded(counted(), path, "")))
        self._unpack(path, "", head, opened, 1)

    def _unpack(self, path: Path, way: str, head: bytes, opened: Opener, depth: int) -> None:
        kind = container(head)
        if kind is None:
            return
        if depth > DEPTH:
            self.found.unread.append((self._shown(path), f"{way}: packed more than {DEPTH} times"))
            return
        parts = inside(kind, opened, path if depth == 1 else None)
        for name, blocks, again in self._guarded(parts, path, f"{way} > {kind}".removeprefix(" > ")):
            inner = f"{way} > {name}".removeprefix(" > ")
            stream = self._guarded(_placed(blocks), path, inner)
            self._add(path, inner, self.searcher.search(stream))
            for start in self._guarded(_head(again), path, inner) if again is not None else ():
                self._unpack(path, inner, start, again, depth + 1)  # type: ignore[arg-type]

    def _guarded(self, items: Iterator[Item], path: Path, way: str) -> Iterator[Item]:
        """What can be read; an end before the end is noted. Only reading is guarded, not what is done with it."""
        while True:
            try:
                item = next(items)
            except StopIteration:
                return
            except UNREADABLE as error:
                self._unread(path, way, error)
                return
            yield item

    def _name(self, path: Path, said: bytes | None = None) -> None:
        self._add(path, "name", self.searcher.search([(0, os.fsencode(path.name) if said is None else said)]))

    def _add(self, path: Path, way: str, hits: list[Hit]) -> None:
        shown = self._shown(path) if hits else ""
        self.found.findings += [
            Finding(shown, way, hit.row, hit.offset, hit.encoding, hit.characters, hit.of) for hit in hits
        ]

    def _shown(self, path: Path) -> str:
        """The path, without names that say what is looked for."""
        withheld = False
        while self.searcher.search([(0, os.fsencode(path))]):
            path, withheld = path.parent, True
        return f"{path}/(name withheld)" if withheld else str(path)

    def _unread(self, path: Path, way: str, error: Exception) -> None:
        # Their own words may quote what they read.
        why = (error.strerror if isinstance(error, OSError) else None) or type(error).__name__
        self.found.unread.append((self._shown(path), f"{way}: {why}".removeprefix(": ")))


def _numbers(rows: list[int]) -> str:
    return ", ".join(map(str, rows[:10])) + (f" and {len(rows) - 10} more" if len(rows) > 10 else "")


def _visible(path: str) -> str:
    """A name must not move the cursor or begin a line of its own."""
    return "".join(character if character.isprintable() else "\ufffd" for character in path)


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _opener(path: Path) -> Opener:
    """Never through a link that was put there since the folder was listed, and without waiting for a pipe."""
    flags = os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    return lambda: io.FileIO(path, "rb", opener=lambda name, _: os.open(name, flags))  # type: ignore[return-value]


def _blocks(opened: Opener) -> Iterator[tuple[int, bytes]]:
    """A file's bytes and where they begin; holes of sparse files are passed over."""
    with opened() as file:
        start = _next_data(file.fileno(), 0)
        while start is not None:
            file.seek(start)
            block = file.read(BLOCK)
            if not block:
                return
            yield start, block
            start += len(block)
            if not any(block[-1:]):  # may be the beginning of a hole
                start = _next_data(file.fileno(), start)


def _next_data(descriptor: int, start: int) -> int | None:
    try:
        return os.lseek(descriptor, start, os.SEEK_DATA)
    except OSError as error:  # ENXIO: nothing but a hole; others: a file system that does not know
        return None if error.errno == errno.ENXIO else start


def _placed(blocks: Iterator[bytes]) -> Iterator[tuple[int, bytes]]:
    start = 0
    for block in blocks:
        yield start, block
        start += len(block)


def _head(opened: Opener) -> Iterator[bytes]:
    with opened() as file:
        yield file.read(HEAD)
