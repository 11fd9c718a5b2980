"""Folders of versions, ``versions/<id>``: weights taken over from a run once, checked before use, removed on purge.

A version keeps the layout of a run, so that whatever reads a run reads a version::

    version.json       what it is: digests of files and base, settings, data as counts and digests; the ledger knows it
    adapter/ | model/  the files; this is the folder to load
    run.json           complete; where it came from on this machine
    config.yaml        the run's settings without its data; beneath an adapter lies the version it was trained on
    provenance.json    the run's, without row ids
    results.json       of the run's last evaluation, if there is one

Small files are copied. Files of `LINKED` bytes and more, the weights of a full model, become hard links where the file
system allows it: adding costs no disk, and the run may be deleted. A reference would die with the run, and a copy of
every full model would fill the disk. The price is that whoever writes *into* the run's file changes the version, too:
a switch compares digests and refuses such a version. Nothing in this package writes into finished weights. Going back
must be quick: a rollback does not read again what the file system says nobody touched since it was compared (`check`).

Row ids are left out, since they may be names of people; records of an evaluation hold text and are left out as well. Of
a model that `merge` wrote the version is laid out in the same way, as if a run of kind ``merge`` had written it.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from llm_forget.compliance.versions.snapshot import Origin, files_of
from llm_forget.core import formats
from llm_forget.core.digests import file_digest
from llm_forget.core.errors import AdapterRefused, EvidenceBroken, EvidenceError
from llm_forget.core.files import write_atomic
from llm_forget.core.formats.evidence import ComparedFiles, CurrentVersion, Version
from llm_forget.core.formats.run import Provenance, RunState
from llm_forget.core.strict_json import canonical_digest

FOLDER, POINTER, VERSION, COMPARED = "versions", "current.json", "version.json", ".compared.json"
SETTLED = 2_000_000_000  # ns after which a file is changed at another time, on any file system
LINKED = 64 << 20  # bytes from which on a file is linked where that is possible
NO_LINK = (errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
Mark = tuple[str | None, int, int, int, int]  # digest, size, inode, times of content and metadata in ns


def folder_of(evidence: Path, identity: str) -> Path:
    """Folder of a version."""
    return evidence / FOLDER / identity


def writable(evidence: Path) -> bool:
    """Whether this user may change versions, and not only look at them."""
    folder = evidence / FOLDER
    return os.access(folder if folder.exists() else evidence, os.W_OK)


@contextmanager
def locked(evidence: Path) -> Iterator[None]:
    """One process at a time adds, switches or purges; others wait. What a killed one left half done is removed.

    Who may only read, reads without: there is nothing that could be half done for them.
    """
    import fcntl  # not on Windows

    folder = evidence / FOLDER
    if not writable(evidence):
        yield
        return
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        for path in (*folder.glob(".*.tmp"), *folder.glob("*/.*.tmp")):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        yield


def describe(origin: Origin, weights: str) -> dict[str, Any]:
    """What version.json will say: nothing that a second addition of the same would say differently."""
    content = {
        "format": Version.FORMAT,
        "kind": origin.kind,
        "part": origin.part,
        "weights": weights,
        "base": origin.base,
        "files": origin.digests,
        "config": origin.settings,
        "provenance": origin.facts,
    }
    return json.loads(json.dumps(content, default=str))  # as it will be read back


def take(evidence: Path, identity: str, content: dict[str, Any], origin: Origin, parent: str | None) -> None:
    """Make the folder of a version: whole or not at all, on disk when this returns.

    Args:
        content: from `describe`.
        parent: the version that it came from.

    Raises:
        AdapterRefused: a file changed meanwhile.
        ValueError: the model beneath it changed since the run; nothing is kept.
    """
    from llm_forget.models.digest import source_digest

    folder = folder_of(evidence, identity)
    temporary = folder.with_name(f".{identity}.{os.getpid()}.tmp")
    temporary.mkdir(mode=0o700)
    try:
        for name, digest in content["files"].items():
            _take_file(origin.weights / name, temporary / content["part"] / name, digest)
        beneath = origin.beneath
        if beneath is not None and Path(beneath).expanduser().exists():
            beneath = str(Path(beneath).expanduser().resolve())
        state = RunState(
            content["kind"], "complete", identity={}, run=str(origin.path.resolve()),
            weights=str(origin.weights.resolve()), beneath=beneath,
        )  # fmt: skip
        formats.write(temporary / "run.json", state)
        formats.write(temporary / "provenance.json", content["provenance"], Provenance)
        formats.write(temporary / VERSION, content, Version)
        _configure(temporary, folder.parent, content, parent)
        if source_digest(str(temporary), origin.revision) != content["weights"]:
            raise EvidenceError(
                f"the model that run '{origin.path}' started from changed since; bring back what it was"
            )
        if folder.exists():  # what a purge left, or a version with damaged files
            shutil.rmtree(folder)
        os.replace(temporary, folder)
        _sync(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _take_file(source: Path, target: Path, digest: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if not _linked(source, target):
        shutil.copyfile(source, target)
    if file_digest(target, final=True) != digest:
        raise AdapterRefused(f"'{source}' changed while it was read; add its run again")
    _sync(target)


def _linked(source: Path, target: Path) -> bool:
    if source.stat().st_size < LINKED:
        return False
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError as error:
        if error.errno not in NO_LINK:
            raise
        return False
    return True


def _sync(path: Path) -> None:
    """Until a folder is on disk, a power loss may take back what was renamed in it."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def content_of(evidence: Path, identity: str) -> dict[str, Any]:
    """version.json.

    Raises:
        EvidenceBroken: it is gone or damaged.
    """
    path = folder_of(evidence, identity) / VERSION
    try:
        return formats.read_content(path, Version, advice="add the run of this version again", error=EvidenceBroken)
    except OSError as error:
        raise EvidenceBroken(f"'{path}' is gone, or cannot be read; add the run of this version again") from error


def check(evidence: Path, identity: str, about: str, *, quick: bool = False) -> dict[str, Any]:
    """Compare every file of a version with what the ledger noted, and return version.json.

    Args:
        evidence: its folder.
        identity: of the version.
        about: digest of version.json, from the ledger.
        quick: do not read files of `LINKED` bytes and more again that were compared before and, as the file system
            says (inode, size, times of content and of change), nobody has touched since.

    Raises:
        EvidenceBroken: version.json is not the one that was noted.
        AdapterRefused: a file is gone, was changed, is a link, or was added.
    """
    content = content_of(evidence, identity)
    folder = folder_of(evidence, identity)
    if canonical_digest(content) != about:
        raise EvidenceBroken(f"'{folder / VERSION}' is not what the ledger noted; add the run of this version again")
    part = folder / content["part"]
    present_files, before = files_of(part), _compared(evidence)
    now = {f"{identity}/{name}": _mark(path, content["files"].get(name)) for name, path in present_files.items()}
    for name, digest in content["files"].items():
        key = f"{identity}/{name}"
        if quick and name in present_files and now[key] is not None and now[key] == before.get(key):
            continue
        if name not in present_files or file_digest(present_files[name]) != digest:
            problem = "is gone" if name not in present_files else "was changed"
            raise AdapterRefused(f"'{part / name}' {problem}, so version {identity} is not used; add its run again")
    if extra_files := sorted(present_files.keys() - content["files"].keys()):
        raise AdapterRefused(f"'{part / extra_files[0]}' is no file of version {identity}; remove it")
    other_marks = {key: mark for key, mark in before.items() if not key.startswith(f"{identity}/")}
    after = other_marks | {key: mark for key, mark in now.items() if mark is not None}
    if after != before and writable(evidence):
        formats.write(evidence / FOLDER / COMPARED, ComparedFiles(after))
    return content


def _mark(path: Path, digest: str | None) -> Mark | None:
    """What a file system says of a large file; None of one that is small, or too new to tell a later change apart."""
    status = path.lstat()
    if status.st_size < LINKED or time.time_ns() - status.st_ctime_ns < SETTLED:
        return None
    return digest, status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns


def _compared(evidence: Path) -> dict[str, Mark]:
    """Marks of large files when their digests were last compared; where this is lost, all are read again."""
    record = formats.read_if_valid(evidence / FOLDER / COMPARED, ComparedFiles)
    return record.files if record is not None else {}


def came_from(evidence: Path, identity: str) -> dict[str, Any]:
    """``run``, ``weights`` and ``beneath`` as paths of this machine; empty where the folder is gone."""
    path = folder_of(evidence, identity) / "run.json"
    return formats.read_content(path, RunState, error=EvidenceBroken) if path.is_file() else {}


def configure(evidence: Path, identity: str, parent: str | None) -> None:
    """Write config.yaml where it is not as it must be, so that a version loads wherever the evidence folder now is."""
    folder = folder_of(evidence, identity)
    _configure(folder, folder.parent, content_of(evidence, identity), parent)


def _configure(folder: Path, others: Path, content: dict[str, Any], parent: str | None) -> None:
    stored = formats.read(folder / "run.json", RunState).beneath
    beneath = str((others / parent).resolve()) if parent else stored or None
    text = yaml.safe_dump({"model_name_or_path": beneath, **content["config"]}, sort_keys=False, allow_unicode=True)
    if not (folder / "config.yaml").is_file() or (folder / "config.yaml").read_text(encoding="utf-8") != text:
        write_atomic(folder / "config.yaml", text)


def note_results(evidence: Path, identity: str, origin: Origin) -> None:
    """Copy the results into the version, where they are there and others than before."""
    for source in origin.measured:
        target = folder_of(evidence, identity) / source.name
        if source.is_file() and (not target.is_file() or target.read_bytes() != source.read_bytes()):
            write_atomic(target, source.read_bytes())


def remove(evidence: Path, identity: str) -> None:
    """Remove the files of a version; what it was, version.json, stays."""
    folder = folder_of(evidence, identity)
    for part in ("model", "adapter"):
        if (folder / part).is_dir():
            # First out of the way as a whole: half of it must not look like a version.
            gone = folder.with_name(f".{identity}.{part}.{os.getpid()}.tmp")
            os.replace(folder / part, gone)
            shutil.rmtree(gone)
    if folder.is_dir():
        _sync(folder)


def pointer(evidence: Path) -> CurrentVersion | None:
    """Content of current.json; None where it is missing or damaged, and is to be written again."""
    return formats.read_if_valid(evidence / FOLDER / POINTER, CurrentVersion)


def point(evidence: Path, content: CurrentVersion) -> None:
    """Move the pointer: readers see the old or the new version, and it is on disk when this returns."""
    formats.write(evidence / FOLDER / POINTER, content)
    _sync(evidence / FOLDER)
