"""Create the folder of a version, ``versions/<id>``, from a run, verify it before use, and remove its weights.

A version has the same layout as a run, so that all code that reads runs also reads versions::

    version.json       settings; digests of files, base and data; the ledger has the digest of version.json itself
    adapter/ | model/  the weights; the folder to load
    run.json           status *complete*, and the local paths that the version was created from
    config.yaml        the run's settings without its data; the base of an adapter is the version it was trained on
    provenance.json    the provenance of the run, without row ids
    results.json       results of the run's last evaluation, if any

Small files are copied. Files of at least `LINKED` bytes become hard links if the file system allows it. A hard link
needs no disk space and remains if the run is deleted, but writing into the run's file also changes the version. A
switch to a version therefore compares all digests. A rollback skips large files that are unchanged since their last
comparison.

A version does not contain row ids, which may be names of people, or per-row results, which contain text.
"""

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

from llm_forget.compliance.versions.snapshot import ModelSnapshot, files_of
from llm_forget.core import formats
from llm_forget.core.digests import file_digest
from llm_forget.core.errors import AdapterRefused, EvidenceBroken, EvidenceError
from llm_forget.core.files import write_atomic
from llm_forget.core.formats.evidence import ComparedFiles, CurrentVersion, Version
from llm_forget.core.formats.run import Provenance, RunState
from llm_forget.core.strict_json import canonical_digest

FOLDER, POINTER, VERSION, COMPARED = "versions", "current.json", "version.json", ".compared.json"
SETTLED = 2_000_000_000  # ns; on any file system, changes that are further apart have different time stamps
LINKED = 64 << 20  # minimum size in bytes of files that become hard links
NO_LINK = (errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
Mark = tuple[str | None, int, int, int, int]  # digest, size, inode, times of content and metadata in ns


def folder_of(evidence: Path, identity: str) -> Path:
    """Return the folder of a version."""
    return evidence / FOLDER / identity


def writable(evidence: Path) -> bool:
    """Return whether this user has permission to change the versions of an evidence folder."""
    folder = evidence / FOLDER
    return os.access(folder if folder.exists() else evidence, os.W_OK)


@contextmanager
def locked(evidence: Path) -> Iterator[None]:
    """Hold the lock of the versions within a ``with`` block, and first remove temporary files of killed processes.

    A user without write permission takes no lock.
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


def version_content(snapshot: ModelSnapshot, weights: str) -> dict[str, Any]:
    """Return the content of version.json for a snapshot. The same run always gives the same content."""
    content = {
        "format": Version.FORMAT,
        "kind": snapshot.kind,
        "part": snapshot.part,
        "weights": weights,
        "base": snapshot.base,
        "files": snapshot.digests,
        "config": snapshot.settings,
        "provenance": snapshot.provenance,
    }
    return json.loads(json.dumps(content, default=str))  # the same types as in the content read from the file


def create(evidence: Path, identity: str, content: dict[str, Any], snapshot: ModelSnapshot, parent: str | None) -> None:
    """Create the folder of a version atomically and flush it to disk.

    ``content`` comes from `version_content`. ``parent`` is the id of the version that the run started from.
    Raises AdapterRefused if a file changed while it was read, EvidenceError if the base model changed since the run.
    """
    from llm_forget.models.digest import source_digest

    folder = folder_of(evidence, identity)
    temporary = folder.with_name(f".{identity}.{os.getpid()}.tmp")
    temporary.mkdir(mode=0o700)
    try:
        for name, digest in content["files"].items():
            _copy_file(snapshot.weights / name, temporary / content["part"] / name, digest)
        base_path = snapshot.base_path
        if base_path is not None and Path(base_path).expanduser().exists():
            base_path = str(Path(base_path).expanduser().resolve())
        state = RunState(
            content["kind"], "complete", identity={}, run=str(snapshot.path.resolve()),
            weights=str(snapshot.weights.resolve()), beneath=base_path,
        )  # fmt: skip
        formats.write(temporary / "run.json", state)
        formats.write(temporary / "provenance.json", content["provenance"], Provenance)
        formats.write(temporary / VERSION, content, Version)
        _write_config(temporary, folder.parent, content, parent)
        if source_digest(str(temporary), snapshot.revision) != content["weights"]:
            raise EvidenceError(
                f"the base model of run '{snapshot.path}' changed since the run; restore the former model"
            )
        if folder.exists():  # left by a purge, or with damaged files
            shutil.rmtree(folder)
        os.replace(temporary, folder)
        _sync(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _copy_file(source: Path, target: Path, digest: str) -> None:
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
    """Flush a file or folder to disk. A power loss can revert a rename until its folder is flushed."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def content_of(evidence: Path, identity: str) -> dict[str, Any]:
    """Return the content of version.json. Raise EvidenceBroken if it is missing or damaged."""
    path = folder_of(evidence, identity) / VERSION
    try:
        return formats.read_content(path, Version, advice="add the run of this version again", error=EvidenceBroken)
    except OSError as error:
        raise EvidenceBroken(f"'{path}' is gone or unreadable; add the run of this version again") from error


def verify_files(evidence: Path, identity: str, about: str, *, quick: bool = False) -> dict[str, Any]:
    """Compare every file of a version with its recorded digest, and return the content of version.json.

    Args:
        about: digest of version.json according to the ledger.
        quick: skip files of at least `LINKED` bytes whose inode, size and times are the same as at the last comparison.

    Raises:
        EvidenceBroken: version.json differs from the ledger.
        AdapterRefused: a file is missing, changed, a link, or unexpected.
    """
    content = content_of(evidence, identity)
    folder = folder_of(evidence, identity)
    if canonical_digest(content) != about:
        raise EvidenceBroken(
            f"'{folder / VERSION}' was changed: the ledger has another digest; add the run of this version again"
        )
    part = folder / content["part"]
    present_files, before = files_of(part), _compared(evidence)
    marks = {f"{identity}/{name}": _mark(path, content["files"].get(name)) for name, path in present_files.items()}
    for name, digest in content["files"].items():
        key = f"{identity}/{name}"
        if quick and name in present_files and marks[key] is not None and marks[key] == before.get(key):
            continue
        if name not in present_files or file_digest(present_files[name]) != digest:
            problem = "is gone" if name not in present_files else "was changed"
            raise AdapterRefused(f"'{part / name}' {problem}, so version {identity} cannot be used; add its run again")
    if extra_files := sorted(present_files.keys() - content["files"].keys()):
        raise AdapterRefused(f"'{part / extra_files[0]}' is not a file of version {identity}; remove it")
    other_marks = {key: mark for key, mark in before.items() if not key.startswith(f"{identity}/")}
    after = other_marks | {key: mark for key, mark in marks.items() if mark is not None}
    if after != before and writable(evidence):
        formats.write(evidence / FOLDER / COMPARED, ComparedFiles(after))
    return content


def _mark(path: Path, digest: str | None) -> Mark | None:
    """Return the `Mark` of a file, or None if the file is small, or so new that a change could leave the same times."""
    status = path.lstat()
    if status.st_size < LINKED or time.time_ns() - status.st_ctime_ns < SETTLED:
        return None
    return digest, status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns


def _compared(evidence: Path) -> dict[str, Mark]:
    """Return the `Mark` of each large file at its last comparison; empty if .compared.json is missing or damaged."""
    record = formats.read_if_valid(evidence / FOLDER / COMPARED, ComparedFiles)
    return record.files if record is not None else {}


def source_paths(evidence: Path, identity: str) -> dict[str, Any]:
    """Return the paths that a version was created from: ``run``, ``weights``, ``beneath``; empty without run.json."""
    path = folder_of(evidence, identity) / "run.json"
    return formats.read_content(path, RunState, error=EvidenceBroken) if path.is_file() else {}


def write_config(evidence: Path, identity: str, parent: str | None) -> None:
    """Write config.yaml again if the path of the base changed, so that a version can be loaded after a move."""
    folder = folder_of(evidence, identity)
    _write_config(folder, folder.parent, content_of(evidence, identity), parent)


def _write_config(folder: Path, others: Path, content: dict[str, Any], parent: str | None) -> None:
    base_path = formats.read(folder / "run.json", RunState).beneath or None
    if parent:
        base_path = str((others / parent).resolve())
    text = yaml.safe_dump({"model_name_or_path": base_path, **content["config"]}, sort_keys=False, allow_unicode=True)
    if not (folder / "config.yaml").is_file() or (folder / "config.yaml").read_text(encoding="utf-8") != text:
        write_atomic(folder / "config.yaml", text)


def copy_results(evidence: Path, identity: str, snapshot: ModelSnapshot) -> None:
    """Copy the evaluation results of a run to its version, unless the version has the same results already."""
    for source in snapshot.result_files:
        target = folder_of(evidence, identity) / source.name
        if source.is_file() and (not target.is_file() or target.read_bytes() != source.read_bytes()):
            write_atomic(target, source.read_bytes())


def remove(evidence: Path, identity: str) -> None:
    """Remove the weights of a version, but not version.json."""
    folder = folder_of(evidence, identity)
    for part in ("model", "adapter"):
        if (folder / part).is_dir():
            # Renamed first: a partly removed folder must not look like a version.
            removed = folder.with_name(f".{identity}.{part}.{os.getpid()}.tmp")
            os.replace(folder / part, removed)
            shutil.rmtree(removed)
    if folder.is_dir():
        _sync(folder)


def read_pointer(evidence: Path) -> CurrentVersion | None:
    """Return the content of current.json, or None if it is missing or damaged. `locked_ledger` then writes it again."""
    return formats.read_if_valid(evidence / FOLDER / POINTER, CurrentVersion)


def write_pointer(evidence: Path, content: CurrentVersion) -> None:
    """Replace current.json atomically and flush it to disk."""
    formats.write(evidence / FOLDER / POINTER, content)
    _sync(evidence / FOLDER)
